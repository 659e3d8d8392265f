"""An exported folder onto the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from flm.checkpoints.hub import first_line, is_hub_name


def check_token(repo_id: str) -> None:
    """Raises ValueError unless a login to the hub is at hand and the name is one."""
    import huggingface_hub

    if not is_hub_name(repo_id):
        raise ValueError(f"export.repo_id={repo_id} is no name on the hub: write owner/model")
    if huggingface_hub.get_token() is None:
        raise ValueError(f"export.repo_id={repo_id} needs a login to the hub: set HF_TOKEN, or run `hf auth login`")


def push_to_hub(folder: Path, files: Sequence[str], repo_id: str, private: bool, endpoint: str | None = None) -> str:
    """Uploads an exported folder as one commit, making the repository if it is not there; the commit's address.

    Args:
        files: those of the folder that travel, as `write_folder` names them.
        repo_id: owner/model.
        private: of a repository made now.
        endpoint: address of the hub; None: the usual one, or HF_ENDPOINT.

    Raises:
        ValueError: no login, or the hub refuses.
    """
    import huggingface_hub

    check_token(repo_id)
    api = huggingface_hub.HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Model trained with flm",
        )
    except Exception as error:  # the hub and the network each raise their own
        raise ValueError(
            f"export.repo_id={repo_id}: not uploaded ({first_line(error)}); the folder {folder} is whole"
        ) from error
    return str(done.commit_url)

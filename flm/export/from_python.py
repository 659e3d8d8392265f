"""Writes a loaded model as a Hugging Face folder, or uploads it: mode=export for Python.

from flm.export.from_python import push_to_hub, save_pretrained
save_pretrained(lm, "folder", license="apache-2.0")
"""

import tempfile
from pathlib import Path

from flm.checkpoints.model_file import ModelSource
from flm.export import upload
from flm.export.hf_folder import write_folder
from flm.export.model_card import model_card
from flm.language_model import LanguageModel


def save_pretrained(
    lm: LanguageModel, folder: str | Path, license: str | None = None, citation: str | None = None, name: str | None = None
) -> list[str]:
    """Writes weights, tokenizer, card and code, and returns the names of the files. `flm.load(folder)` gives the same model.

    Args:
        license: identifier in the hub's list; None: the card says that none was given.
        citation: text for the card.
        name: of the model in the card; None: the folder's.

    Raises:
        ValueError: the model was made in Python, so nothing says how it was trained.
    """
    name = Path(folder).resolve().name if name is None else name
    return write_folder(Path(folder), lm.algorithm, _source(lm), model_card(name, lm.algorithm, _source(lm), license, citation))


def push_to_hub(
    lm: LanguageModel, repo_id: str, private: bool = True, license: str | None = None, **options: str | None
) -> str:
    """Uploads the folder of `save_pretrained` as one commit, and returns its address.

    Args:
        repo_id: owner/model.
        private: whether the repository is private, if it is new.
        license, options: as of `save_pretrained`.

    Raises:
        ValueError: as `save_pretrained`; there is no login, or the hub refuses.
    """
    upload.check_token(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        files = save_pretrained(lm, folder, license, name=repo_id, **options)
        return upload.push_to_hub(Path(folder), files, repo_id, private)


def _source(lm: LanguageModel) -> ModelSource:
    if lm.source is None:
        raise ValueError("the model was made in Python: nothing says how it was trained; train it with flm, or load one")
    return lm.source

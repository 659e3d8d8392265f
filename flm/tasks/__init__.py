"""What `mode` names, and the resolvers that configs use."""

from typing import Any

from omegaconf import OmegaConf


def _architecture_of(folder: str | None) -> dict[str, Any] | None:
    from flm.models.qwen import architecture_of

    return None if folder is None else architecture_of(folder)


OmegaConf.register_new_resolver("architecture_of", _architecture_of, replace=True)

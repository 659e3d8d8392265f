"""Flow-matching language models: text from noise, all positions at once, in one network evaluation or in many."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flm.language_model import LanguageModel, load

__all__ = ["LanguageModel", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # at first use: importing a part of this package must not import torch for all of it
    if name in __all__:
        from flm import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module 'flm' has no attribute {name!r}")

"""MAUVE: how close a set of generated texts is to a set of real ones (arXiv 2102.01454, 2212.14578). An optional extra.

The features, hidden states of the last token, are computed here, from safetensors weights only. The package mauve-text
quantises them and integrates the divergence curve. The score depends on the model, the length of the texts and their number (a
tenth of it is the number of clusters), so only scores that agree in all three compare. Published ones take thousands of texts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

KEY = "eval.mauve_model_name_or_path"


class Mauve:
    """MAUVE against a fixed set of real texts, whose features are computed once.

    Args:
        real: texts to compare with, at least two.
        name_or_path: hub name or local folder of the model of features; gpt2-large in published numbers.
        device: where it runs.
        max_tokens: longer texts are cut to this, or to fewer if the model reads fewer.

    Raises:
        ValueError: the package or the model is missing, or there are fewer than two texts.
    """

    def __init__(self, real: Sequence[str], name_or_path: str, device: torch.device | str = "cpu", max_tokens: int = 1024):
        try:
            import mauve
        except ImportError as error:
            raise ValueError(f"eval.mauve=true needs the package mauve-text: pip install mauve-text ({error})") from error
        if len(real) < 2:
            raise ValueError("eval.mauve=true compares with real texts, and there are fewer than two")
        self._compute = mauve.compute_mauve
        self._model, self._tokenizer = _load(name_or_path)
        limit = getattr(self._model.config, "max_position_embeddings", None) or max_tokens
        self._max_tokens, self._device = min(max_tokens, limit), torch.device(device)
        self._model.requires_grad_(False).eval().to(self._device)
        self._real = self._features(real)

    def score(self, texts: Sequence[str]) -> float:
        """In (0, 1], 1 for the same distribution."""
        found = self._compute(p_features=self._features(texts), q_features=self._real, seed=0, verbose=False)
        return float(found.mauve)

    @torch.no_grad()
    def _features(self, texts: Sequence[str]):
        rows: list[Tensor] = []
        for text in texts:
            ids = self._tokenizer(text, truncation=True, max_length=self._max_tokens, verbose=False)["input_ids"]
            ids = ids or [self._tokenizer.eos_token_id]  # an empty text counts as one end token
            hidden = self._model(input_ids=torch.tensor([ids], device=self._device)).last_hidden_state
            rows.append(hidden[0, -1].float().cpu())
        return torch.stack(rows).numpy()


def _load(name: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
        model, report = AutoModel.from_pretrained(name, **options)
    except Exception as error:  # the hub, the network and the parsers each raise their own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{KEY}={name} cannot be loaded ({reason}): give a hub name or a local folder") from error
    if report["missing_keys"]:  # transformers would fill these weights with random numbers
        raise ValueError(f"{KEY}={name} is not a complete model: its weights lack {sorted(report['missing_keys'])[0]}")
    return model, tokenizer

"""A published causal language model as a judge of samples, by hub name or local folder."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flm.judges.gen_ppl import Scorer

KEY = "eval.gen_ppl_eval_model_name_or_path"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
log = logging.getLogger(__name__)


class HuggingFaceScorer(Scorer):
    """A causal language model and its tokenizer. Only safetensors weights are read, and no code that comes with them is run.

    The judge's tokenizer works as it does by default: one that begins every text with a token of its own (Llama) still does.
    Rows are padded with the end token on the right, where causal attention needs no mask.

    Args:
        name_or_path: hub name, or a folder with config.json, safetensors weights and a tokenizer.
        device: where the model lives.
        dtype: "float32", "bfloat16" or "float16"; log-probabilities are taken in float32 from the logits.
        batch_size: windows at once. Logits take batch_size * L * (the judge's vocabulary) numbers.
        context: tokens read at once; None: as many as the model can.
        revision: branch, tag or commit of a hub model; None: the commit in the local cache, else the main branch.

    Raises:
        ValueError: the model is not found, unreachable, without safetensors, incomplete, or without an end token. Names the
            config key.
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        dtype: str = "float32",
        batch_size: int = 8,
        context: int | None = None,
        revision: str | None = None,
    ):
        name = os.fspath(name_or_path)
        if dtype not in DTYPES:
            raise ValueError(f"the dtype of {KEY} must be one of {', '.join(DTYPES)}, not {dtype}")
        commit = None if _is_path(name) else _commit(name, revision)
        self._model, self._tokenizer = _load(name, commit, DTYPES[dtype])
        self._model.requires_grad_(False).eval().to(device)
        super().__init__(
            name, _context(name, self._model.config, context), self._end_id(name), batch_size, device, dtype, commit
        )

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, verbose=False)["input_ids"] if texts else []

    def token_nll(self, ids: Tensor) -> Tensor:
        logits = self._model(input_ids=ids, use_cache=False).logits
        nll = torch.zeros(ids.shape, device=ids.device)
        for row in range(len(ids)):  # one at a time: a float32 copy of all logits might not fit
            nll[row, 1:] = torch.nn.functional.cross_entropy(logits[row, :-1].float(), ids[row, 1:], reduction="none")
        return nll

    def _end_id(self, name: str) -> int:
        end = self._tokenizer.eos_token_id
        if end is None:
            raise ValueError(f"{KEY}={name}: its tokenizer has no end token, which marks where a text stops counting")
        return end


def _is_path(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def _commit(name: str, revision: str | None) -> str:
    """The commit of a hub model, that in the local cache if there is one. All files are then read from this commit."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    try:
        return HfApi().model_info(name, revision=revision, timeout=20).sha
    except Exception as error:  # the hub and the network each raise their own
        raise _unavailable(name, error) from error


def _load(name: str, commit: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer: from the folder, from the cache, or from the hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if commit is None:
        _check_folder(name)
    # with a fixed commit transformers does not ask the hub to convert pickled weights
    options = {"revision": commit or "main", "trust_remote_code": False}

    def load(local_files_only: bool) -> tuple[Any, dict[str, Any], Any]:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only, **options)
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            local_files_only=local_files_only,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            **options,
        )
        return model, report, tokenizer

    try:
        try:  # an earlier download needs no network
            model, report, tokenizer = load(local_files_only=True)
        except (OSError, ValueError):
            if commit is None:
                raise
            log.info("%s: fetching %s from the Hugging Face hub", KEY, name)
            model, report, tokenizer = load(local_files_only=False)
    except Exception as error:  # the hub, the network and the parsers each raise their own
        raise _unavailable(name, error) from error
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    if absent:  # transformers would fill these weights with random numbers
        raise ValueError(f"{KEY}={name} is not a complete model: its weights lack {absent[0]} ({len(absent)} in all)")
    return model, tokenizer


def _check_folder(name: str) -> None:
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{KEY}={name} is no model folder (no config.json): give one, or a hub name (gpt2-large)")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{KEY}={name} has no safetensors weights (pickled ones, pytorch_model.bin, can execute code and are not "
            "read): convert them first"
        )


def _context(name: str, config: Any, wanted: int | None) -> int:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if wanted is None and limit is None:
        raise ValueError(f"{KEY}={name} does not say how many tokens it reads at once: give the scorer a context")
    if wanted is not None and limit is not None and wanted > limit:
        raise ValueError(f"{KEY}={name} reads at most {limit} tokens at once: a context of {wanted} is too long")
    return wanted or limit


def _unavailable(name: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0]
    return ValueError(
        f"{KEY}={name} cannot be loaded from the local cache or the Hugging Face hub ({reason}): "
        "without network give a local folder with config.json, safetensors weights and tokenizer"
    )

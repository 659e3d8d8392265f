"""The `generate` of exported models, also for `pipeline("text-generation")`. It needs the samplers of the package `flm`."""

import torch
import torch.nn.functional as F
from torch import Tensor

# arguments that transformers passes to `generate` and no sampler has
NOT_OF_SAMPLERS = (
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
    "use_cache",
    "return_dict_in_generate",
    "tokenizer",
    "assistant_model",
)


class Generates:
    """Mixin of models exported by `flm`."""

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As inherited, without the digests in the config, which are of the exported files and not of these."""
        self.config.flm = {key: value for key, value in self.config.flm.items() if key != "sha256"}
        super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        num_return_sequences: int | None = None,
        do_sample: bool | None = None,
        steps: int | None = None,
        seed: int | None = None,
        generation_config=None,
        **options,
    ) -> Tensor:
        """Token ids of texts that begin with `input_ids`: those that the model of `flm.load` would write with these weights.

        Needs the package `flm`. Arguments that are not given are as in generation_config.json.

        Args:
            input_ids: (B, n) prompts; None: one empty prompt.
            attention_mask: (B, n), 0 on padding, which is at the left of a prompt.
            max_new_tokens, max_length: new positions, and positions in all. Neither goes beyond the model's length.
            num_return_sequences: number of texts for each prompt.
            do_sample: False: take the most probable token in place of a draw.
            steps: of the sampler.
            seed: of the noise; None: drawn by torch's global generator.
            options: temperature, top_k, top_p and other options of the sampler.

        Returns:
            (B * num_return_sequences, m): padding, prompt and new tokens.
        """
        counts = {"max_new_tokens": max_new_tokens, "max_length": max_length, "num_return_sequences": num_return_sequences}
        for name, number in counts.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        config = generation_config or self.generation_config
        said = lambda name, given: getattr(config, name, None) if given is None else given  # noqa: E731
        (lm, canvas_of), count = self._package(), said("num_return_sequences", num_return_sequences) or 1
        options = {key: value for key, value in options.items() if key not in NOT_OF_SAMPLERS}
        if said("do_sample", do_sample) is False:
            options["temperature"] = 0
        if input_ids is None:
            input_ids = torch.zeros(1, 0, dtype=torch.long, device=self.device)
        size = self.config.vocab_size
        if input_ids.dim() != 2 or ((input_ids < 0) | (input_ids >= size)).any():
            raise ValueError(f"input_ids must be (B, n), ids of at least 0 and below {size}")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [row[keep.bool()].tolist() for row, keep in zip(input_ids, mask, strict=True)]
        width, rows = input_ids.shape[1], []
        new = said("max_new_tokens", max_new_tokens) or (said("max_length", max_length) or self.config.length) - width
        new = min(new, self.config.length - max(map(len, prompts)))
        if new < 1:
            raise ValueError(f"max_length={max_length}: {width} tokens leave nothing to write, of {self.config.length} at most")
        padding = getattr(config, "pad_token_id", None) or 0
        for prompt in prompts:
            number = int(torch.randint(2**31, ())) if seed is None else seed
            canvas = canvas_of([prompt, new], count, self.device)
            found = lm.fill(canvas, steps, number, **{key: value for key, value in options.items() if value is not None})
            rows.append(F.pad(found, (width - len(prompt), 0), value=padding))
        return torch.cat(rows)

    def _package(self):
        """This model as a `LanguageModel`, built once and given the current weights at every call; and `Canvas.from_pieces`."""
        try:
            import flm
            from flm.samplers.canvas import Canvas
        except ImportError as error:
            raise ImportError("generate: the samplers are in the package flm, which is not installed") from error
        if self.__dict__.get("_lm") is None:
            self.__dict__["_lm"] = flm.load(self.config._name_or_path, device="cpu")
        lm = self.__dict__["_lm"].to(self.device)
        lm.algorithm.load_state_dict(self.state_dict(), strict=False, assign=True)
        return lm, Canvas.from_pieces

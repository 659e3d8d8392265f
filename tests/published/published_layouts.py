"""Small random checkpoints in exactly the layout in which FLM, MDLM and Duo publish theirs, objects in the pickle included;
and their forward pass, written from its description alone."""

import math
from collections import OrderedDict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

D, HEADS, BLOCKS, COND, L = 24, 3, 2, 10, 6
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "bird", "sees", "hears", "a", "fish", ".", "sea"]
V = len(WORDS)

ran: list[str] = []  # what code in a file did


class FakeTokenizer:
    """In place of the Hugging Face tokenizer that published checkpoints carry."""

    def __init__(self):
        self.vocabulary = {word: i for i, word in enumerate(WORDS)}
        self.ranks = {("a", "b"): 0}

    def __setstate__(self, state):
        ran.append("FakeTokenizer.__setstate__")


def shapes(vocab_size: int, two_times: bool, loss_weight: bool, blocks: int = BLOCKS) -> dict[str, tuple[int, ...]]:
    """Keys after `backbone.` in the order of registration, the buffer among them."""
    found: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (vocab_size, D)}
    for name in ("sigma_map", *(["sigma_map_prime"] if two_times else [])):
        found |= {f"{name}.mlp.0.weight": (COND, 256), f"{name}.mlp.0.bias": (COND,)}
        found |= {f"{name}.mlp.2.weight": (COND, COND), f"{name}.mlp.2.bias": (COND,)}
    found["rotary_emb.inv_freq"] = (D // HEADS // 2,)
    if loss_weight:
        layers = {"s_embed.mlp.0": (128, 256), "s_embed.mlp.2": (128, 128), "mlp.0": (128, 128), "mlp.2": (1, 128)}
        for name, rows in layers.items():
            found |= {f"learnable_loss_weighting.{name}.weight": rows, f"learnable_loss_weighting.{name}.bias": rows[:1]}
    for n in range(blocks):
        block = {
            "norm1.weight": (D,), "attn_qkv.weight": (3 * D, D), "attn_out.weight": (D, D), "norm2.weight": (D,),
            "mlp.0.weight": (4 * D, D), "mlp.0.bias": (4 * D,), "mlp.2.weight": (D, 4 * D), "mlp.2.bias": (D,),
            "adaLN_modulation.weight": (6 * D, COND), "adaLN_modulation.bias": (6 * D,),
        }  # fmt: skip
        found |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
    found |= {"output_layer.norm_final.weight": (D,), "output_layer.linear.weight": (vocab_size, D)}
    found |= {"output_layer.linear.bias": (vocab_size,), "output_layer.adaLN_modulation.weight": (2 * D, COND)}
    return found | {"output_layer.adaLN_modulation.bias": (2 * D,)}


def random_weights(seed: int, vocab_size: int = V, two_times: bool = False, loss_weight: bool = False) -> dict[str, Tensor]:
    """So large that both softcaps bend what they cap."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for key, shape in shapes(vocab_size, two_times, loss_weight).items():
        scale = 0.9 if "attn_qkv" in key else 1.5 if "output_layer.linear" in key else 0.4
        found[key] = scale * torch.randn(shape, generator=generator) + (1.0 if "norm" in key else 0.0)
    found["rotary_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, D // HEADS, 2).float() / (D // HEADS))
    return found


def average_of(weights: dict[str, Tensor], decay: float, updates: int = 777) -> dict:
    return {
        "decay": decay,
        "num_updates": updates,
        "shadow_params": [weight for key, weight in weights.items() if key != "rotary_emb.inv_freq"],
    }


def lightning(state: dict[str, Tensor], config: dict | None, tokenizer: object = None, **more) -> dict:
    """The top level; `state` without its prefix."""
    state_dict = OrderedDict((f"backbone.{key}", weight) for key, weight in state.items())
    state_dict._metadata = OrderedDict({"": {"version": 1}, "backbone": {"version": 1}})
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)} for i in range(2)}
    content = {
        "epoch": 1,
        "global_step": 1234,
        "pytorch-lightning_version": "2.5.2",
        "state_dict": state_dict,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.batch_progress": {"total": {"completed": 1234}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "/x", "dirpath": Path("/x")}},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}],
        "lr_schedulers": [{"last_epoch": 1234, "_last_lr": [3e-4]}],
        "sampler": {"random_state": None},
    }
    if config is not None:
        config = OmegaConf.create(config | {"eval": {"checkpoint_path": None}, "seed": 1, "dirs": ["a", "b"]})
        content["hparams_name"] = "kwargs"
        content["hyper_parameters"] = {"config": config, "tokenizer": tokenizer or FakeTokenizer(), "vocab_size": None}
    return content | more


def config_of(algorithm: str, **more) -> dict:
    return {
        "algo": {"name": algorithm, "backbone": "dit", "parameterization": "mean", **more},
        "model": {"name": "small", "length": L, "hidden_size": D, "n_heads": HEADS, "dropout": 0.1},
        "data": {"tokenizer_name_or_path": "bert-base-uncased", "train": "lm1b-wrap"},
        "hidden": "${model.hidden_size}",
    }


def flm_v1(compiled: bool = False) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """February 2026: one time, several averages. The file, its trained weights and its (first) average."""
    trained, first, second = (random_weights(seed) for seed in (1, 2, 3))
    ema, slow = average_of(first, 0.9999), average_of(second, 0.99999)
    state = trained
    if compiled:
        state = {f"_orig_mod.{key}".replace("blocks.0.", "blocks.0._orig_mod."): weight for key, weight in trained.items()}
    more = {"ema": ema, "ema_list": {"0.99990000": ema, "0.99999000": slow}, "ema_decay_list": [0.9999, 0.99999]}
    return lightning(state, config_of("dos_denoiser", time_condition="alpha_t"), **more), trained, first


def fmlm_v2() -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """June 2026: two times, one average, no teacher in the file but what a stray save left."""
    trained, average = (random_weights(seed, two_times=True) for seed in (4, 5))
    content = lightning(trained, config_of("fmlm", double_temb=True), ema=average_of(average, 0.9999))
    content["pytorch-lightning_version"] = "2.6.0"
    stray = {"teacher_model.backbone.vocab_embed.embedding": torch.zeros(2, 2)}
    content["state_dict"] = OrderedDict(stray | content["state_dict"])
    return content, trained, average


def two_stage(loss_weight: bool = True) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """February 2026, either stage: two times and a learned loss weight between the time embeddings and the blocks."""
    trained, average = (random_weights(seed, two_times=True, loss_weight=loss_weight) for seed in (6, 7))
    config = config_of("flm_distill_double", double_temb=True, learnable_loss_weighting=loss_weight)
    return lightning(trained, config, ema=average_of(average, 0.9999)), trained, average


def mdlm(generation: int = 2) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """A row of the tables more than tokens, for the mask. The first code base has no `algo` in its config."""
    trained, average = (random_weights(seed, vocab_size=V + 1) for seed in (8, 9))
    config = config_of("mdlm")
    config["algo"]["parameterization"] = "subs"
    if generation == 1:
        config = {"parameterization": "subs", "backbone": "dit", "T": 0, "model": config["model"]}
    return lightning(trained, config, ema=average_of(average, 0.9999)), trained, average


def duo() -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    trained, average = (random_weights(seed) for seed in (10, 11))
    return lightning(trained, config_of("duo_base"), ema=average_of(average, 0.9999)), trained, average


def tokenizer_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def published_logits(
    p: dict[str, Tensor],
    embedded: Tensor,
    times: tuple[Tensor, ...],
    attention_softcap: float | None = None,
    output_softcap: float | None = None,
) -> Tensor:
    """(B, L, V) logits for embedded states (B, L, D) and one or two times (B,)."""

    def capped(x: Tensor, cap: float | None) -> Tensor:
        return x if cap is None else cap * torch.tanh(x / cap)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return weight * centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)

    def silu(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def embed(time: Tensor, name: str) -> Tensor:
        frequency = torch.tensor([10000 ** (-i / 128) for i in range(128)])
        angle = time[:, None] * frequency  # the time as it is, not scaled
        return linear(silu(linear(torch.cat([angle.cos(), angle.sin()], 1), f"{name}.mlp.0")), f"{name}.mlp.2")

    def turned(x: Tensor) -> Tensor:  # (B, L, heads, width)
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[1])[:, None] * p["rotary_emb.inv_freq"]
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    condition = sum(embed(time, name) for time, name in zip(times, ("sigma_map", "sigma_map_prime"), strict=False))
    condition = silu(condition)
    x, width = embedded, D // HEADS
    for n in range(BLOCKS):
        b = f"blocks.{n}"
        parts = linear(condition, f"{b}.adaLN_modulation")[:, None].split(D, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        qkv = (norm(x, p[f"{b}.norm1.weight"]) * (1 + scale_a) + shift_a) @ p[f"{b}.attn_qkv.weight"].T
        q, k, v = (part.reshape(*x.shape[:2], HEADS, width) for part in qkv.split(D, -1))
        scores = torch.einsum("blhw,bmhw->bhlm", turned(q), turned(k)) / math.sqrt(width)
        mixed = torch.einsum("bhlm,bmhw->blhw", capped(scores, attention_softcap).softmax(-1), v).flatten(2)
        x = x + gate_a * (mixed @ p[f"{b}.attn_out.weight"].T)
        inner = linear(norm(x, p[f"{b}.norm2.weight"]) * (1 + scale_m) + shift_m, f"{b}.mlp.0")
        gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + gate_m * linear(gelu, f"{b}.mlp.2")
    shift, scale = linear(condition, "output_layer.adaLN_modulation")[:, None].split(D, -1)
    logits = linear(norm(x, p["output_layer.norm_final.weight"]) * (1 + scale) + shift, "output_layer.linear")
    return capped(logits, output_softcap)

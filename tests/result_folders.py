"""Folders of small result files, written by hand to the layout that the tasks write."""

import json
import math
from pathlib import Path

SHA = "9f2c" * 16
CORPUS = "documentation of Python 3.11.7"
ONE_STEP = "<b>the the</b> of a & of the list to to is a an"
MANY_STEPS = "Return a new list of the items\nin the sequence, or None."
SPEED, GENERATED = "perf/tokens_per_second", "gen/entropy_nats_8_steps"
REAL_TEXT = "Return the number of items in a container."


def estimate(mean, error=0.02, count=64):
    return {"mean": mean, "standard_error": error, "count": count}


def head(kind, label, algorithm="FLM", **more):
    return {
        "format_version": 1,
        "command": ["main.py", f"mode={kind}", f"eval.checkpoint_path=runs/{label}/checkpoints/last.ckpt"],
        "config": {"seed": 1, "eval": {"label": None}},
        "git_revision": "0123456789abcdef0123456789abcdef01234567-dirty",
        "versions": {"flm": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"},
        "checkpoint": {"path": f"runs/{label}/checkpoints/last.ckpt", "sha256": SHA, "step": 4321},
        "seed": 1,
        "kind": kind,
        "label": label,
        "algorithm": algorithm,
        "dtype": "float32",
        "device": "cpu",
        "scorer": {"name": "gpt2-large", "revision": None, "protocol": "published", "dtype": "float32"},
        **more,
    }


def metrics(entropy, distinct, ppl):
    gen_ppl = {"scorer": "gpt2-large", "revision": None, "protocol": "published"}
    gen_ppl |= {"ppl": ppl, "nats_per_token": estimate(math.log(ppl))}
    return {
        "entropy_nats": estimate(entropy),
        "distinct_tokens": estimate(47.5),
        "distinct_1": distinct / 3,
        "distinct_2": distinct,
        "distinct_3": min(1.0, 1.3 * distinct),
        "rep_4": estimate(0.0123, 0.001),
        "longest_run": estimate(2.5),
        "self_bleu_4": estimate(31.4, 0.6),
        "ngram_ce_nats": estimate(3.333),
        "gen_ppl": [gen_ppl],
    }


def write(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_texts(path: Path, texts) -> None:
    path.write_text("".join(json.dumps({"text": text, "tokens": [1]}) + "\n" for text in texts), encoding="utf-8")


def samples(folder: Path, label="nano", scale=1.0) -> Path:
    """results.json with its texts: 1, 8 and 64 steps."""
    generated = {}
    for steps, entropy, distinct, ppl in ((1, 2.871, 0.313, 412.5), (8, 3.618, 0.573, 187.2), (64, 3.944, 0.668, 96.35)):
        generated[str(steps)] = {
            "steps": steps,
            "options": {"temperature": 1.0},
            "count": 64,
            "file": f"samples-{steps}.jsonl",
            "seconds": 0.7 * steps,
            "ms_per_sample": 11.25 * steps * scale,
            "tokens_per_second": 11377.0 / steps,
            "network_evaluations": steps,
            "metrics": metrics(entropy * scale, distinct, ppl),
        }
    real = {
        "count": 64,
        "file": "real.jsonl",
        "source": "documentation of Python 3.11.7",
        "metrics": metrics(4.117, 0.712, 45.67),
    }
    path = write(folder / "results.json", head("sample_eval", label, generated=generated, real=real))
    write_texts(folder / "samples-1.jsonl", [ONE_STEP, "in of the with <script>alert(1)</script> a a to"])
    write_texts(folder / "samples-8.jsonl", ["Never shown: neither the fewest nor the most steps."])
    write_texts(folder / "samples-64.jsonl", [MANY_STEPS, "If the path does not exist, raise an error of the parser."])
    write_texts(folder / "real.jsonl", [REAL_TEXT, "Open a file and return a stream."])
    return path


def frontier(folder: Path, label="nano", shift=0.0, scorer="gpt2-large") -> Path:
    """frontier.json: two numbers of steps, four temperatures."""
    points = [
        {
            "settings": {"run": label, "steps": steps, "temperature": temperature},
            "entropy_nats": estimate(3.4 + 0.9 * (temperature - 0.7) * 2 + 0.02 * math.log(steps)),
            "log_ppl": estimate(4.1 + 2.0 * (temperature - 0.7) - 0.1 * math.log(steps) + shift, 0.04),
            "distinct_2": 0.6,
            "self_bleu_4": None,
            "ms_per_sample": 10.0 * steps,
        }
        for steps in (8, 64)
        for temperature in (0.7, 0.8, 0.9, 1.0)
    ]
    common = {"run": label, "target": "data", "target_entropy_nats": 4.117, "crossings": 1}
    reached = {"ppl": 87.65, "log_ppl": 4.4733, "log_ppl_error": 0.0321, "temperature": 0.9312}
    open_end = {"closest_ppl": None, "closest_entropy_nats": None, "closest_temperature": None}
    unreached = {"ppl": None, "log_ppl": None, "log_ppl_error": None, "temperature": None}
    closest = {"closest_ppl": 123.4, "closest_entropy_nats": 3.98, "closest_temperature": 1.0}
    matched = [{"steps": 64, **common, **reached, **open_end}, {"steps": 8, **common, **unreached, **closest}]
    real = {"entropy_nats": estimate(4.117), "log_ppl": estimate(3.821)}
    content = head("frontier", label, points=points, real=real, matched=matched)
    content["scorer"] = {"name": scorer, "revision": None, "protocol": "published", "dtype": "float32"}
    return write(folder / "frontier.json", content)


def film(folder: Path, steps: int, label="nano") -> Path:
    """film-<steps>.json: at most 12 moments of one text that grows surer; the first token is given."""
    words = ("Return| a| new| list| of| the| items|\n|in| the| sequence|,| or| None|.| It| is| an| error| to| pass| a| number"
             "| below| zero|,| <b>|&amp|.").split("|")  # fmt: skip
    count = min(steps, 12)
    frames = []
    for index in range(count):
        tau = index / count
        known = [i == 0 or (7 * i) % len(words) < (index + 1) / count * len(words) for i in range(len(words))]
        frames.append(
            {
                "index": index,
                "tau": tau,
                "tokens": [word if here else " the" for word, here in zip(words, known, strict=True)],
                "probability": [1.0 if i == 0 else 0.95 if here else 0.08 + 0.3 * tau for i, here in enumerate(known)],
                "given": [i == 0 for i in range(len(words))],
            }
        )
    return write(folder / f"film-{steps}.json", head("film", label, steps=steps, frames=frames))


def likelihood(folder: Path, label="nano", kind="variational upper bound") -> Path:
    parts = {"t 0.000 to 0.300": 0.31, "t 0.300 to 0.600": 1.27, "t 0.600 to 0.800": 0.62, "decoding at t 0.800": 0.154}
    values = {
        "nats_per_token": 2.354,
        "standard_error_nats": 0.013,
        "monte_carlo_error_nats": 0.0047,
        "perplexity": 10.528,
        "bits_per_token": 3.396,
        "bits_per_byte": 2.0512,
        "bits_per_character": 2.0533,
        "parts_nats_per_token": parts if kind != "exact" else {},
        "sequences": 256,
        "tokens": 32768,
        "draws_per_example": 4,
    }
    corpora = {
        "data": {"corpus": "documentation of Python 3.11.7", "bytes": 1, "characters": 1, "variants": {"network": values}}
    }
    content = {"kind": kind, "chosen": "network", "measured_on_training_text": {"network": []}, "corpora": corpora}
    return write(folder / "likelihood.json", head("likelihood", label, likelihood=content))


def training(folder: Path) -> Path:
    """run.json and metrics.csv of a run that was resumed once: two validations, the second is the one to report."""
    config = {
        "seed": 1,
        "algo": {"_target_": "flm.algos.flm.FLM"},
        "data": {"_target_": "flm.texts.pydoc.PydocCorpus"},
        "trainer": {"max_steps": 1000},
    }
    content = head("train", "x") | {"config": config, "checkpoint": None}
    for key in ("kind", "label", "algorithm", "dtype", "device", "scorer"):
        del content[key]
    tenths = [f"{i / 10:.1f}-{(i + 1) / 10:.1f}" for i in range(10)]
    names = [f"val/{which}_ce_nats_tau_{tenth}" for which in ("denoising", "context_free") for tenth in tenths]
    free = [4.87 * (1 - (i + 0.5) / 10) for i in range(10)]
    columns = ["epoch", SPEED, "step", "train/loss_nats_per_token", "val/denoising_ce_nats_per_token", GENERATED, *names]
    for version, (step, share) in enumerate(((499, 0.97), (999, 0.8123))):
        model = [f"{value * share:.4f}" if i != 3 else "" for i, value in enumerate(free)]  # no sequence fell in one tenth
        tenths = [*model, *[f"{value:.4f}" for value in free]]
        nothing = [""] * len(names)
        rows = [
            ["0", str(2000 + 1000 * version), str(step - 20), f"{6 - 2 * version}", "", "", *nothing],
            ["0", str(2468 + 1000 * version), str(step - 10), f"{5 - 2 * version}", "", "", *nothing],
            ["0", str(9000 + 1000 * version), str(step - 5), f"{4.5 - 2 * version}", "", "", *nothing],
            ["0", "", str(step), "", f"{3 - version}", "", *tenths],
            ["", "", str(step + 1), "", "", f"{2.5 + version}", *nothing],  # samples are taken after the step
        ]
        path = folder / "metrics" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(",".join(row) + "\n" for row in [columns, *rows]))
    return write(folder / "run.json", content)


def everything(root: Path) -> Path:
    training(root / "runs" / "nano")
    samples(root / "eval" / "samples")
    frontier(root / "eval" / "frontier")
    for steps in (1, 64):
        film(root / "eval" / "samples", steps)
    likelihood(root / "eval" / "likelihood")
    return root

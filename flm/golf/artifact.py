"""mode=artifact: packs a checkpoint into one small file, within a limit on code and weights, and evaluates that file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

import flm
from flm.algos.algorithm import Algorithm
from flm.atomic import write_bytes, write_text
from flm.checkpoints.description import Description
from flm.checkpoints.folder import shareable
from flm.golf import flow_lm_eval, golf_eval
from flm.golf.error_feedback import input_moments
from flm.golf.flow_lm_eval import training_batches
from flm.golf.packed import has_zstandard
from flm.golf.packing import Packed, Rounding, pack
from flm.golf.quantise import Plan
from flm.golf.submission_script import script
from flm.ranges import Count, Existing, Index, one_of
from flm.tasks import ppl_eval
from flm.tasks.assemble import targets
from flm.tasks.evaluation import EvalOptions, load_model
from flm.tasks.held_out import HeldOut
from flm.tasks.machine import Machine
from flm.tasks.processes import check_alone
from flm.tasks.run import Run

FILE, SCRIPT = "model.flmpack", "submission.py"
EVALUATIONS = {
    "ppl_eval": ppl_eval.evaluate,
    "golf_eval": golf_eval.evaluate,
    "flow_lm_eval": flow_lm_eval.evaluate,
}


@dataclass(frozen=True)
class ArtifactOptions:
    """The `artifact` config, which explains its keys."""

    limit_bytes: Count | None = 16_000_000
    code: Existing | Sequence[Existing] | None = None
    kept_elements: Index = 65_536
    rounding: Rounding = "step"
    calibration: Index = 0
    scale_floor: bool = False
    script: bool = False
    steps: Count | None = None
    evaluation: Annotated[str, one_of(EVALUATIONS)] | Literal["auto"] | None = "auto"


def artifact(config: DictConfig) -> dict[str, Any]:
    """Packs eval.checkpoint_path into run_dir/model.flmpack, with averaged weights unless eval.disable_ema.

    Writes run_dir/artifact.json and, with artifact.script, run_dir/submission.py, a script that needs only the packed model
    to score a text. The evaluation at the end loads the packed file, so it measures the rounded weights.
    """
    check_alone("artifact")
    run, console = Run(config), Console()
    wanted, evaluation = run.options(ArtifactOptions, "artifact"), run.options(EvalOptions, "eval")
    if wanted.script and wanted.code is not None:
        raise ValueError("artifact.script=true is itself the code that counts: leave artifact.code null")
    num_code = 0 if wanted.script else code_bytes(wanted.code)
    left = _left(wanted.limit_bytes, num_code)
    if wanted.scale_floor and wanted.rounding == "step":
        raise ValueError("artifact.scale_floor=true is of artifact.rounding=published: steps know no floor")
    if wanted.calibration and wanted.rounding != "step":
        raise ValueError(f"artifact.calibration={wanted.calibration} is of artifact.rounding=step, not {wanted.rounding}")
    held_out = HeldOut.of(evaluation, run["data"], run["loader"], run["seed"])
    if wanted.calibration:
        held_out.check_needed("artifact with artifact.calibration")
    if not has_zstandard():
        console.print("note: zstandard is not installed: compressed with zlib, a few percent larger")
    lm = load_model(evaluation, Machine.of(run["trainer"], run["model"]))
    if wanted.script:
        code = script(target for key in ("algo", "model") for target in targets(lm.config[key]))
        num_code = len(code.encode())
        left = _left(wanted.limit_bytes, num_code)
    # A shareable recipe leaves out where the text lies. The evaluation below needs that, but not the cache.
    recipe = shareable(lm.config)
    if "data" in lm.config:
        recipe["data"] = lm.config["data"] | ({"cache_dir": None} if "cache_dir" in lm.config["data"] else {})
    recipe["weights"] = lm.source.weights  # the file holds one set of weights
    if wanted.steps is not None:
        recipe["sampling"] = {**(recipe.get("sampling") or {}), "steps": [wanted.steps]}
    about = Description(recipe, lm.source.tokenizer, lm.algorithm.vocab_size, lm.length, lm.source.step)
    moments = _moments(lm, held_out, wanted.calibration, run["loader"]["eval_batch_size"], run["seed"])
    try:
        packed = pack(lm.algorithm, about, left, wanted.scale_floor, wanted.kept_elements, wanted.rounding, moments)
    except ValueError as error:
        raise ValueError(f"{lm.source.path}: {error}") from error
    path = run.folder / FILE
    write_bytes(path, packed.content)
    if wanted.script:
        write_text(run.folder / SCRIPT, code)
    loaded = flm.load(path, lm.device, None, evaluation.trusted_modules).algorithm
    weights = {name: parameter for name, parameter in loaded.named_parameters() if name in packed.plan.bits}
    size = path.stat().st_size
    result = {
        "path": str(path),
        "weights": lm.source.weights,
        "model_bytes": size,
        "code_bytes": num_code,
        "total_bytes": size + num_code,
        "limit_bytes": wanted.limit_bytes,
        "headroom_bytes": None if left is None else left - size,
        "elements_by_bits": packed.plan.elements(weights),
        "step": packed.plan.step,
        "calibration": wanted.calibration,
        "blocks_in_5_bits": list(packed.plan.fewer),
        "tried": [
            {"step": plan.step, "blocks_in_5_bits": list(plan.fewer), "model_bytes": size}
            for plan, size in packed.tried.items()
        ],
    }
    _print(console, result, packed)
    run.write_json("artifact.json", run.provenance(lm.source) | {"kind": "artifact", "artifact": result})
    if wanted.evaluation is not None:
        chosen = _evaluation_of(lm.algorithm) if wanted.evaluation == "auto" else wanted.evaluation
        own = run.changed("eval", checkpoint_path=str(path), disable_ema=False)
        result["evaluation"] = EVALUATIONS[chosen](own)
    return result


def _moments(lm: flm.LanguageModel, held_out: HeldOut, blocks: int, size: int, seed: int) -> dict[str, Tensor] | None:
    """Second moments of the inputs of all linear layers over `blocks` training blocks; None if `blocks` is 0.

    The blocks are training text, because held-out text must not influence the weights that are scored on it.

    Args:
        size: blocks in a batch.

    Raises:
        ValueError: the data have no training text.
    """
    if not blocks:
        return None
    batches = training_batches(held_out.data(lm), blocks, size)
    if not batches:
        raise ValueError(f"artifact.calibration={blocks}: the data have no training text: set artifact.calibration=0")
    with lm.autocast():
        return input_moments(lm.algorithm, batches, seed)


def _evaluation_of(algorithm: Algorithm) -> str:
    """Key of EVALUATIONS: the exact likelihood of a model that reads from left to right, else a bound."""
    return "golf_eval" if hasattr(algorithm, "predictions") else algorithm.scored_by or "ppl_eval"


def code_bytes(paths: str | Sequence[str] | None) -> int:
    """Size in bytes of the files, and of the .py files in the folders, each counted once.

    Args:
        paths: files and folders; None: this package and, if it exists, the main.py beside it.

    Raises:
        ValueError: a path does not exist.
    """
    package = Path(flm.__file__).parent
    if paths is None:
        main = package.parent / "main.py"  # absent in an installed package
        places = [package, *([main] if main.is_file() else [])]
    else:
        places = [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]
    files: set[Path] = set()
    for place in places:
        if not place.exists():
            raise ValueError(f"artifact.code: {place}: no such file or folder")
        files |= {path.resolve() for path in place.rglob("*.py")} if place.is_dir() else {place.resolve()}
    return sum(path.stat().st_size for path in files)


def _left(limit: int | None, num_code: int) -> int | None:
    """Bytes left for the weights; None: no limit. Raises ValueError if the code leaves none."""
    if limit is not None and limit <= num_code:
        raise ValueError(f"artifact.limit_bytes={limit:,}: the code alone has {num_code:,}: name in artifact.code what counts")
    return None if limit is None else limit - num_code


def _named(plan: Plan) -> str:
    if plan.step is not None:
        return f"steps of {plan.step:.4f} of a row's root mean square"
    return f"{len(plan.fewer)} blocks in 5 bits" + f" {list(plan.fewer)}" * bool(plan.fewer)


def _print(console: Console, result: dict[str, Any], packed: Packed) -> None:
    bits = Table(title="weights", box=SIMPLE, pad_edge=False)
    bits.add_column("bits", justify="right")
    bits.add_column("elements", justify="right")
    for width, elements in result["elements_by_bits"].items():
        bits.add_row(str(width), f"{elements:,}")
    console.print(bits)
    sizes = Table(title="bytes", box=SIMPLE, pad_edge=False, show_header=False)
    sizes.add_column()
    sizes.add_column(justify="right")
    for plan, size in packed.tried.items():
        sizes.add_row(f"tried: {_named(plan)}", f"{size:,}")
    sizes.add_row("model", f"{result['model_bytes']:,}")
    for name in ("code", "total", "limit", "headroom"):
        value = result[f"{name}_bytes"]
        sizes.add_row(name, "none" if value is None else f"{value:,}")
    console.print(sizes)
    console.print(f"written to {result['path']}", soft_wrap=True)

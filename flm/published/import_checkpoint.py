"""mode=import: a published checkpoint written as one of ours, which then loads with nothing else."""

from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from flm.checkpoints import files
from flm.checkpoints.description import KEY
from flm.checkpoints.load import PREFIX, load_algorithm, read_model
from flm.tasks.evaluation import EvalOptions, checkpoint_path, import_choices
from flm.tasks.run import Run


def import_checkpoint(config: DictConfig) -> dict[str, Any]:
    """Writes eval.checkpoint_path to run_dir/checkpoints/imported.ckpt: weights, their average, tokenizer and config.

    Raises:
        ValueError: it is not a published checkpoint, does not fit, or something that it does not say is not given.
    """
    run = Run(config)
    wanted = run.options(EvalOptions, "eval")
    path = checkpoint_path(wanted, "import")
    file = read_model(path, import_choices(wanted), wanted.hub_revision, wanted.hub_file)
    if not file.published:
        raise ValueError(f"{path}: is a checkpoint of this project already")
    target = run.folder / "checkpoints" / "imported.ckpt"
    description = file.description.to_dict()
    if file.average is not None:
        description["average"] = {name: tensor.contiguous() for name, tensor in file.average.items()}
    state = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in file.state.items()}
    files.save({"state_dict": state, "global_step": file.step, KEY: description}, target)
    algorithm, _ = load_algorithm(target, None, wanted.trusted_modules)
    parameters = sum(parameter.numel() for parameter in algorithm.parameters())
    found = {
        "kind": "import",
        "file": str(target.relative_to(run.folder)),
        "algorithm": type(algorithm).__name__,
        "parameters": parameters,
        "averaged": file.average is not None,
        "model": file.config["model"],
        "vocab_size": file.description.vocab_size,
    }
    run.write_json("import.json", run.provenance(file) | found)
    Console().print(
        f"{path}: {type(algorithm).__name__}, {parameters:,} parameters, {file.description.vocab_size:,} tokens, length "
        f"{file.description.length}, step {file.step:,}, {'with' if file.average is not None else 'without'} averaged weights; "
        f"written to {target}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return found

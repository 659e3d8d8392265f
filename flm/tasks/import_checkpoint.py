"""mode=import: a published checkpoint written as one of ours, which then loads with nothing else."""

from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from flm.checkpoints import files
from flm.checkpoints.description import KEY
from flm.checkpoints.load import PREFIX, load_algorithm, read_model
from flm.tasks.assemble import run_dir
from flm.tasks.import_choices import import_choices
from flm.tasks.results import provenance, write_json


def import_checkpoint(config: DictConfig) -> dict[str, Any]:
    """Writes eval.checkpoint_path to run_dir/checkpoints/imported.ckpt: weights, their average, tokenizer and config.

    Raises:
        ValueError: it is not a published checkpoint, does not fit, or something that it does not say is not given.
    """
    path = config.eval.checkpoint_path
    if path is None:
        raise ValueError("eval.checkpoint_path is not set: name the checkpoint to import")
    file = read_model(path, import_choices(config))
    if not file.published:
        raise ValueError(f"{path}: is a checkpoint of this project already")
    folder = run_dir(config)
    target = folder / "checkpoints" / "imported.ckpt"
    description = file.description.to_dict()
    if file.average is not None:
        description["average"] = {name: tensor.contiguous() for name, tensor in file.average.items()}
    state = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in file.state.items()}
    files.save({"state_dict": state, "global_step": file.step, KEY: description}, target)
    algorithm, _ = load_algorithm(target, None, config.eval.trusted_modules)
    parameters = sum(parameter.numel() for parameter in algorithm.parameters())
    found = {
        "kind": "import",
        "file": str(target.relative_to(folder)),
        "algorithm": type(algorithm).__name__,
        "parameters": parameters,
        "averaged": file.average is not None,
        "model": file.config["model"],
        "vocab_size": file.description.vocab_size,
    }
    write_json(folder / "import.json", provenance(config, file) | found)
    Console().print(
        f"{path}: {type(algorithm).__name__}, {parameters:,} parameters, {file.description.vocab_size:,} tokens, length "
        f"{file.description.length}, step {file.step:,}, {'with' if file.average is not None else 'without'} averaged weights; "
        f"written to {target}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return found

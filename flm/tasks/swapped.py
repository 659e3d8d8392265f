"""`experiment=RECIPE GROUP=OPTION`: keys of the recipe that the swapped option does not take are left out."""

from collections.abc import Mapping, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flm.config_files import CONFIGS, groups
from flm.schema import signature_of
from flm.tasks.assemble import resolve

_WHOLE = ("experiment", "mode", "debug")  # groups that a recipe does not choose


def fitting(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments with `~GROUP.KEY` for each key that the recipe sets and the option named beside it does not take.

    Keys that the arguments themselves set stay, and are refused later by name.

    Returns:
        The arguments, and a line to show for each group in which keys are left out.
    """
    given = {key.lstrip("+"): value for key, _, value in (argument.partition("=") for argument in arguments)}
    known = groups()
    chosen = [group for group in given if given[group] in known.get(group, ()) and group not in _WHOLE]
    if "experiment" not in given or not chosen:
        return list(arguments), []
    added, said = list[str](), list[str]()
    try:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            overrides = [item for item in arguments if item[0] != "-" and not item.startswith("hydra") and "=" in item[1:]]
            config = compose("config", ["run_dir=.", *overrides, *(item for item in arguments if item[0] == "~")])
            for group in chosen:
                own = compose("config", ["run_dir=.", f"{group}={given[group]}"])
                rest = [f"{group}.{key}" for key in _left_over(config, own, group)]
                rest = [key for key in rest if not any(item == key or item.startswith(f"{key}.") for item in given)]
                if rest:
                    added += [part for key in rest for part in (f"{key}=0", f"~{key}")]  # Hydra cannot delete a null
                    said.append(
                        f"{group}={given[group]} takes no {', '.join(rest)}: left out of experiment={given['experiment']}"
                    )
    except (HydraException, OmegaConfBaseException, ValueError):
        return list(arguments), []  # the error is raised when the config is composed for the run
    return [*arguments, *added], said


def _left_over(config: DictConfig, own: DictConfig, group: str) -> list[str]:
    """Keys of a group that are not in its option, and that the option's `_target_` does not take."""
    node, alone = config._get_node(group), own._get_node(group)
    if not isinstance(node, DictConfig) or node._is_none():
        return []
    keys = {str(key) for key in node} - (
        {str(key) for key in alone} if isinstance(alone, DictConfig) and not alone._is_none() else set()
    )
    return sorted(key for key in keys if not _takes(node, key))


def _takes(node: DictConfig, key: str) -> bool:
    if "_target_" not in node:  # callbacks: each has a `_target_` of its own
        return not (isinstance(node._get_node(key), Mapping) and "_target_" not in node[key])
    signature = signature_of(resolve(node["_target_"], "_target_"))
    return key.startswith("_") or signature.is_open or key.removesuffix("_path") in signature.parameters

"""Wings' additions to configs: resolvers, and options of config groups on Hydra's search path."""

from collections.abc import Iterable, Sequence

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from flm.registry import add, entries, load, wings


class WingConfigs(SearchPathPlugin):
    """Adds the configs of wings to Hydra's search path; Hydra calls it whenever it composes a config."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package, wing in wings().items():
            if wing.configs is not None:
                search_path.append(package, wing.configs)


def take_in(packages: Iterable[str] = ()) -> None:
    """Registers resolvers and configs of all wings and of further packages.

    Raises:
        ValueError: a package is no wing.
    """
    for package in packages:
        add(package)
    for name, entry in entries("resolvers").items():
        OmegaConf.register_new_resolver(name, lambda *given, _entry=entry: load(_entry)(*given), replace=True)
    Plugins.instance().register(WingConfigs)


def named(arguments: Sequence[str]) -> list[str]:
    """The packages in wings=... on the command line, whose configs are needed before any config is composed."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith("wings=")]
    try:
        found = yaml.safe_load(values[-1]) if values else []
    except yaml.YAMLError as error:
        raise ValueError(f"wings={values[-1]} must be a list of packages, [mine]") from error
    return [found] if isinstance(found, str) else found if isinstance(found, list) else []

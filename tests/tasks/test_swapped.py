"""An option of a group named beside a recipe: what the recipe sets for its own option is left out, and said."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from tasks.running import command

from flm.config_files import CONFIGS, options
from flm.tasks.check import check_config
from flm.tasks.command_line import user_error
from flm.tasks.swapped import fitting

GROUPS = ("lr_scheduler", "optim", "tokenizer", "algo", "model", "data", "callbacks", "logger", "strategy")
LACKING = ("is missing", "Missing mandatory")  # a path, a teacher: asked for by name


def swapped(*arguments):
    """What is said of the arguments, and why the config is refused then; None: it is not."""
    given, said = fitting(arguments)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            check_config(compose("config", ["run_dir=.", *given]))
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        return said, user_error(error)
    return said, None


def test_a_schedule_that_takes_less(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "experiment=pydoc_mdlm", "lr_scheduler=cosine_decay", "--cfg", "job") == 0
    printed = capfd.readouterr()
    assert printed.err == (
        "note: lr_scheduler=cosine_decay takes no lr_scheduler.warmdown_fraction: left out of experiment=pydoc_mdlm\n"
    )
    assert "warmdown_fraction" not in printed.out and "cosine_decay" in printed.out


@pytest.mark.parametrize(
    "arguments,left_out",
    [
        (("experiment=pydoc_mdlm", "lr_scheduler=linear_warmdown"), ""),
        (("experiment=pydoc_mdlm", "lr_scheduler=none"), ""),
        (("experiment=fineweb_kl_flow", "optim=adamw"), "optim.adamw_lr"),
        (("experiment=golf_flow_lm_pr1503", "algo=mdlm", "data=pydoc"), "algo.t_sampler"),
        (("experiment=lm1b_ar", "model=golf_native"), "model.attention_softcap"),  # which it sets to null
        (("experiment=sudoku4_clues_duo", "data=pydoc"), "data.givens, data.held_out"),
    ],
)
def test_what_is_left_out(arguments, left_out):
    said, refused = swapped(*arguments)
    assert [line.split(" takes no ")[1].split(":")[0] for line in said] == [left_out] * bool(left_out)
    assert refused is None


def test_what_the_command_sets_itself_is_refused_by_name():
    said, refused = swapped("experiment=pydoc_mdlm", "lr_scheduler=cosine_decay", "lr_scheduler.warmdown_fraction=0.5")
    assert not said and refused.startswith("lr_scheduler.warmdown_fraction: cosine_decay takes no warmdown_fraction")
    assert fitting(["lr_scheduler=cosine_decay", "optim.lr=1"]) == (["lr_scheduler=cosine_decay", "optim.lr=1"], [])


@pytest.mark.parametrize(
    "arguments,asked",
    [
        (("experiment=pydoc_kl_flow_map", "model=qwen3", "model.pretrained_path=."), None),
        (("experiment=sudoku4_clues_ar", "model=golf_flow"), "model: FlowEncoder takes no causal, conditioned, which AR asks"),
        (("algo=fmlm", "model=golf_native"), "model: GolfTransformer takes no two_times, which FMLM asks of its network"),
    ],
)
def test_a_network_that_an_algorithm_cannot_use_is_one_line(arguments, asked):
    _, refused = swapped(*arguments)
    assert refused is not None and "\n" not in refused and (asked is None or refused.startswith(asked))


def pairs():
    return [(recipe, group, one) for recipe in options("experiment") for group in GROUPS for one in options(group)]


@pytest.mark.parametrize("share", [401, pytest.param(29, marks=pytest.mark.slow)])
def test_no_recipe_is_in_the_way_of_an_option(share):
    """Composed and checked only; more pairs where tests may be slow."""
    taken = 0
    for recipe, group, one in pairs()[::share]:
        _, refused = swapped(f"experiment={recipe}", f"{group}={one}")
        taken += refused is None
        assert refused is None or " takes no " not in refused or "asks of its network" in refused, (recipe, group, one, refused)
    assert taken > len(pairs()) // share // 2

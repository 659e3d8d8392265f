"""Recipes as published, after composition: what inheritance and debug=tiny make of them."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tasks.running import config_of

from flm.tasks.command_line import CONFIGS

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
PUBLISHED = [name for name in EXPERIMENTS if name.startswith(("lm1b_", "owt_")) and not name.endswith("_fitted")]


def composed(name: str, *overrides: str):
    return config_of(Path("/nowhere"), f"experiment={name}", "data.cache_dir=/texts", *overrides)


# sequences a step, optimiser steps, learning rate, beta2, warm-up, average, steps between checkpoints
ROWS = {
    "lm1b_flm": (512, 1_000_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "owt_flm": (512, 1_000_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "lm1b_fmlm": (512, 1_000_000, 3e-4, 0.95, 2500, 0.9999, 25_000),
    "owt_fmlm": (128, 1_000_000, 3e-4, 0.95, 2500, 0.9999, 25_000),
    "lm1b_flm_distill": (512, 1_000_000, 3e-4, 0.95, 2500, 0.9999, 20_000),
    "owt_flm_distill": (128, 1_000_000, 3e-4, 0.95, 2500, 0.9999, 20_000),
    "lm1b_flm_distill_second": (512, 1_000_000, 3e-4, 0.99, 2500, 0.9999, 20_000),
    "owt_flm_distill_second": (512, 1_000_000, 3e-4, 0.99, 2500, 0.9999, 20_000),
    "lm1b_ar": (512, 500_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "owt_ar": (512, 500_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "lm1b_mdlm": (512, 1_000_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "owt_mdlm": (512, 1_000_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "lm1b_duo": (512, 1_000_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "owt_duo": (512, 1_000_000, 3e-4, 0.999, 2500, 0.9999, 20_000),
    "lm1b_duo_distill": (128, 50_000, 6e-5, 0.999, 500, 0.999, 10_000),
    "owt_duo_distill": (128, 50_000, 6e-5, 0.999, 500, 0.999, 10_000),
}


def test_every_published_recipe_has_a_row():
    assert PUBLISHED == sorted(ROWS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_as_published(name):
    config = composed(name)
    every = config.callbacks.checkpoint_every_n_steps.every_n_train_steps
    found = (config.loader.global_batch_size, config.trainer.max_steps, config.optim.lr, config.optim.betas[1])
    assert (*found, config.lr_scheduler.warmup_steps, config.training.ema, every) == ROWS[name]
    model, (corpus, algo) = config.model, name.split("_", 1)
    assert (model.hidden_size, model.num_blocks, model.num_heads, model.dropout) == (768, 12, 12, 0.1)
    softcaps = (model.output_softcap, model.attention_softcap)
    assert softcaps == ((30.0, 50.0) if algo.startswith(("flm", "fmlm")) else (None, None))
    assert (model.length, config.data.name, config.tokenizer.name_or_path, config.tokenizer.add_pad) == {
        "lm1b": (128, "lm1b", "bert-base-uncased", False),
        "owt": (1024, "openwebtext", "gpt2", True),
    }[corpus]
    assert config.data.wrap == "bos_eos" and config.optim.betas[0] == 0.9 and config.optim.weight_decay == 0
    assert (config.trainer.gradient_clip_val, config.trainer.precision, config.seed) == (1.0, None, 1)
    on_eight = config.loader.batch_size * 8
    assert config.loader.global_batch_size % on_eight == 0
    assert config.loader.eval_batch_size * config.sampling.num_sample_batches == 1024
    assert config.eval.gen_ppl_eval_model_name_or_path == "gpt2-large"


def test_options_of_the_algorithms_are_as_published():
    assert [composed(f"{corpus}_fmlm").sampling.gamma for corpus in ("lm1b", "owt")] == [0.8, 1.0]
    fmlm = composed("owt_fmlm").algo
    assert (fmlm.objective, fmlm.diagonal_fraction, fmlm.boundary_prob, fmlm.learnable_loss_weighting) == (
        "semigroup", 0.5, 32, False)  # fmt: skip
    first, second = composed("lm1b_flm_distill").algo, composed("lm1b_flm_distill_second").algo
    assert (first.boundary_prob, first.learnable_loss_weighting, second.boundary_prob) == (64, True, 128)
    duo = {corpus: composed(f"{corpus}_duo").algo for corpus in ("lm1b", "owt")}
    assert (duo["lm1b"].gamma_min, duo["lm1b"].gamma_max) == (-3.5, -1.75)
    assert (duo["owt"].gamma_min, duo["owt"].gamma_max, duo["owt"].curriculum_end) == (-3.55, -1.85, 500_000)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_debug_shrinks_every_experiment(name):
    tiny = composed(name, "debug=tiny")
    length = composed(name).model.length if OmegaConf.select(tiny, "model.grid") else 32  # a board has its cells
    sizes = (tiny.model.length, tiny.model.hidden_size, tiny.trainer.max_steps, tiny.loader.global_batch_size)
    assert sizes == (length, 64, 20, 8)
    assert (tiny.trainer.accelerator, tiny.trainer.devices, tiny.loader.num_workers) == ("cpu", 1, 0)
    assert tiny.eval.gen_ppl_eval_model_name_or_path is None and tiny.sampling.num_sample_batches == 1
    # which it leaves alone; what follows the number of steps still does
    assert OmegaConf.to_container(tiny.algo) == OmegaConf.to_container(composed(name).algo)
    overfit = composed(name, "debug=overfit")
    assert overfit.trainer.overfit_batches == 1 and overfit.model.dropout == 0 and overfit.training.ema is None
    assert OmegaConf.select(overfit, "callbacks.generation") is None


@pytest.mark.parametrize("name,length", [("sudoku4_fmlm", 16), ("sudoku4_clues_ar", 32), ("pydoc_flm", 32)])
def test_debug_leaves_a_board_its_cells(name, length):
    assert composed(name, "debug=tiny").model.length == length
    assert composed(name, "debug=tiny", "model.length=8").model.length == 8


@pytest.mark.parametrize("name", ["lm1b_flm", "owt_flm", "lm1b_fmlm", "owt_fmlm"])
def test_a_fitted_recipe_is_the_published_one_but_for_what_the_network_reads(name):
    published, fitted = (OmegaConf.to_container(composed(name + end), resolve=False) for end in ("", "_fitted"))
    assert fitted["algo"].pop("reads") == "evidence" and fitted["model"].pop("neighbours") == 2
    for node, key in (("algo", "reads"), ("model", "neighbours")):
        published[node].pop(key, None)
    assert fitted == published

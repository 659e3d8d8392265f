"""Network evaluations of samples: every batch counts, and every network, whatever the sampler leaves out."""

from collections import Counter

import pytest
from every_algorithm import NAMES, L, V, build

from flm.data.tokenizers import CharacterTokenizer
from flm.language_model import LanguageModel
from flm.report.frontier.frontier import cost
from flm.samplers.canvas import Canvas
from flm.tasks.processes import ALONE
from flm.tasks.samples import generate

# of 3 steps over 8 positions; KL-flow reads its text out in a last call, the first stage of distillation calls its teacher too
CALLS = {"ar": L, "native_flow": L, "kl_flow": 4, "flm_distill": 6}


def model(name: str) -> LanguageModel:
    tokenizer = CharacterTokenizer().build(lambda: ["abcdefghijklmnopqrstuvwxyz{"[: V - 2]])
    return LanguageModel(build(name).float().eval(), tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_says_what_its_samples_cost(name):
    lm = model(name)
    found = generate(lm, Canvas.blank(2, L, lm.device), 3, 2, 1, ALONE)
    assert found.network_evaluations == CALLS.get(name, 3)


@pytest.mark.parametrize(
    "options", [{"solver": "remask_loop"}, {"solver": "ancestral"}, {"candidates": 3, "accept_below": 3.0}]
)
def test_a_sampler_that_leaves_out_evaluations_costs_the_mean_over_its_batches(options):
    lm, calls, batches = model("mdlm"), Counter(), 12
    hook = lm.algorithm.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.update(["block"]))
    canvas = Canvas.blank(1, L, lm.device)
    found = generate(lm, canvas, 12, batches, 3, ALONE, **options)
    hook.remove()
    assert found.network_evaluations == pytest.approx(calls["block"] / batches)
    alone = {generate(lm, canvas, 12, 1, seed, ALONE, **options).network_evaluations for seed in range(20)}
    assert len(alone) > 1  # else one batch could have spoken for all
    several = [generate(lm, canvas, 12, 1, seed, ALONE, **options) for seed in range(20)]
    assert cost(several)["network_evaluations"] == pytest.approx(sum(one.network_evaluations for one in several) / 20)

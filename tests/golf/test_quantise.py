"""Weights in few bits: codes and scales against their definition, and which weight gets how many."""

import math
from dataclasses import replace

import pytest
import torch

from flm.golf.native_flow import NativeFlow
from flm.golf.native_flow_matcher import NativeFlowMatcher
from flm.golf.quantise import Plan, Quantised, from_the_middle, num_blocks, quantise
from flm.golf.transformer import GolfTransformer


def normal(*shape, std=1.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def relative_error(weight, **options):
    return ((quantise(weight, **options).weight() - weight).norm() / weight.norm()).item()


def test_codes_and_scales_written_out():
    weight = torch.tensor([[31.0, -15.4, 0.6], [-0.5, 0.25, 0.1], [0.0, 0.0, 0.0]])
    found = quantise(weight, 6)
    scale = torch.tensor(0.5 / 31).half()  # as stored
    assert found.scales.tolist() == [1.0, scale.item(), 0.0]
    expected = [[31, -15, 1], [round(w / scale.item()) for w in (-0.5, 0.25, 0.1)], [0, 0, 0]]
    assert found.codes.tolist() == expected
    assert torch.equal(found.weight()[0], torch.tensor([31.0, -15.0, 1.0]))
    assert torch.equal(found.weight()[2], torch.zeros(3))


@pytest.mark.parametrize("bits,std,error", [(6, 0.05, 0.186), (5, 0.05, 0.385), (6, 0.3, 0.032), (5, 0.3, 0.067)])
def test_published_errors_with_the_floor(bits, std, error):
    found = relative_error(normal(512, 512, std=std), bits=bits, floor=True)
    assert math.isclose(found, error, rel_tol=0.02)


@pytest.mark.parametrize("bits", [5, 6, 8])
def test_without_the_floor_the_error_is_one_of_rounding_and_knows_no_scale(bits):
    errors = [relative_error(normal(64, 512, std=std), bits=bits) for std in (0.01, 1.0, 30.0)]
    assert max(errors) / min(errors) < 1.01
    # steps of a row's largest / qmax, rounded: an error of a step / sqrt(12)
    largest = normal(64, 512).abs().amax(1).square().mean().sqrt()
    assert math.isclose(errors[1], largest / (2 ** (bits - 1) - 1) / 12**0.5, rel_tol=0.03)


@pytest.mark.parametrize("bits,low,high", [(5, -16, 15), (6, -32, 31), (8, -128, 127)])
def test_codes_stay_in_range_and_reach_its_end(bits, low, high):
    # 6e-7: a scale that float16 rounds by a half, upwards or downwards
    for size in (1.0, 1e-4, 6e-7, 300.0):
        codes = quantise(normal(64, 64, std=size, seed=3), bits).codes
        assert codes.min() >= low and codes.max() <= high
    assert quantise(normal(64, 64, seed=3), bits).codes.abs().amax() == high


def test_a_percentile_clips_the_few_largest():
    weight = torch.cat((normal(4, 2000, std=0.1), torch.full((4, 1), 50.0)), dim=1)
    clipped = quantise(weight, 8, percentile=0.999)
    bound = weight.double().abs().quantile(0.999, dim=1)
    assert torch.allclose(clipped.scales.double(), bound / 127, rtol=1e-3)
    assert torch.equal(clipped.codes[:, -1], torch.full((4,), 127, dtype=torch.int8))  # the outlier, clipped
    assert (clipped.weight() - weight)[:, :-1].norm() < 0.1 * (quantise(weight, 8).weight() - weight)[:, :-1].norm()


def test_quantiles_of_many_rows_are_those_of_each(monkeypatch):
    weight = normal(7, 50)
    whole = quantise(weight, 8, percentile=0.9)
    monkeypatch.setattr("flm.golf.quantise._QUANTILE_ELEMENTS", 120)  # two rows at a time, and one left over
    cut = quantise(weight, 8, percentile=0.9)
    assert torch.equal(whole.codes, cut.codes) and torch.equal(whole.scales, cut.scales)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_weights_that_cannot_be_rounded_are_refused(bad):
    weight = normal(4, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="no numbers, or too large"):
        quantise(weight, 6)


def test_more_dimensions_are_rows_of_the_first():
    weight = normal(5, 3, 4)
    found, flat = quantise(weight, 6), quantise(weight.reshape(5, 12), 6)
    assert found.codes.shape == weight.shape and torch.equal(found.codes.reshape(5, 12), flat.codes)
    assert torch.equal(Quantised(found.codes, found.scales).weight().reshape(5, 12), flat.weight())


def test_element_classes_of_the_published_model():
    with torch.device("meta"):
        model = NativeFlow(
            lambda **options: GolfTransformer(length=2048, **options),
            1024,
            2048,
            flow=lambda **options: NativeFlowMatcher(**options),
        )
    weights = dict(model.named_parameters())
    plan = Plan.of(weights)
    assert plan.elements(weights) == {"16": 136_904, "8": 1_441_792, "6": 25_952_256}
    assert sum(plan.elements(weights).values()) == 27_530_952
    assert num_blocks(weights) == 11
    fewer = Plan.of(weights, fewer=[5, 6]).elements(weights)
    assert fewer == {"16": 136_904, "8": 1_441_792, "6": 25_952_256 * 9 // 11, "5": 25_952_256 * 2 // 11}
    assert replace(plan, step=0.2).elements(weights) == {"16": 136_904, "step": 1_441_792 + 25_952_256}


def test_blocks_are_taken_from_the_middle_outward():
    assert from_the_middle(11) == [5, 6, 4, 7, 3, 8, 2, 9, 1, 10, 0]
    assert from_the_middle(4) == [2, 3, 1, 0]
    assert from_the_middle(0) == []

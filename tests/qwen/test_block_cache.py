"""Keys and values kept while a block is written: nothing changes where nothing may, and what does is the stale part alone."""

import pytest
import torch
from algos.token_world import exact_dfm

pytest.importorskip("transformers")

from tiny_qwen3 import SHAPE, tiny_qwen3

from flm.algos.dfm import DFM
from flm.algos.mdlm import MDLM
from flm.models.dit import DiT
from flm.qwen.backbone import QwenBackbone
from flm.qwen.block_cache import BlockReader
from flm.qwen.modeling_flow_qwen3 import FlowMatchingLanguageModel
from flm.samplers.canvas import Canvas
from flm.samplers.options import sampler_for
from flm.tasks.samples import counted_calls

REAL, LENGTH = 100, 20


def model(folder, **options) -> DFM:
    network = FlowMatchingLanguageModel.from_pretrained(folder, mask_token_id=REAL, real_vocab_size=REAL, **options).double()
    return DFM(lambda vocab_size: QwenBackbone.around(network), REAL, LENGTH).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_qwen3(tmp_path_factory.mktemp("qwen"))


def canvas(rows: int = 3, longer: int = 0) -> Canvas:
    """Prompts, each so much longer than the one before, and a given token in the middle."""
    tokens = torch.randint(REAL, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    editable = torch.arange(LENGTH).expand(rows, -1) >= 3 + longer * torch.arange(rows)[:, None]
    editable[:, 11] = False
    return Canvas(tokens * ~editable, editable)


class Watched:
    """Counts the positions that the layers computed."""

    def __init__(self, algorithm: DFM):
        self.positions = 0
        algorithm.backbone.network.model.layers[0].register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, arguments, keywords):
        hidden = arguments[0] if arguments else keywords["hidden_states"]
        self.positions += hidden.shape[0] * hidden.shape[1]


def write(algorithm: DFM, given: Canvas | None = None, steps: int = 12, **options):
    """What is written, and in every step the probabilities at the positions of the block that is written."""
    given, seen = canvas() if given is None else given, []
    blocks = (given.editable.cumsum(1) - 1) // 4

    def watch(moment):
        p = moment.posterior.chunk(slice(None)).unflatten(0, given.tokens.shape)
        seen.append(p[blocks == moment.index * 4 // steps])

    options = {"solver": "random_order", "block_length": 4} | options
    tokens = algorithm.generate(given, steps, torch.Generator().manual_seed(1), watch, **options)
    return tokens, torch.cat(seen)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"shift": False}], ids=["shifted", "in place"])
def test_where_a_block_sees_only_what_is_before_it_nothing_changes(folder, options, attention):
    algorithm = model(folder, attn_implementation=attention, **options)
    watched = Watched(algorithm)
    tokens, p = write(algorithm, block_sees="earlier")
    whole, watched.positions = watched.positions, 0
    cached, q = write(algorithm, block_sees="earlier", block_cache=True)
    assert torch.equal(tokens, cached)
    torch.testing.assert_close(q, p, rtol=0, atol=1e-10)
    assert watched.positions < 0.75 * whole
    free, r = write(algorithm)
    assert (r - p).abs().max() > 1e-2  # that is another model than one which sees all
    # rows that come to their blocks at different steps
    whole, cached = (write(algorithm, canvas(3, 2), block_sees="earlier", block_cache=keep)[0] for keep in (False, True))
    assert torch.equal(whole, cached)


def test_evaluations_of_a_block_count_as_all_others(folder):
    algorithm = model(folder)
    for options in ({}, {"block_sees": "earlier"}, {"block_cache": True}):
        layer = []
        hook = algorithm.backbone.network.model.layers[0].register_forward_pre_hook(lambda *_: layer.append(1))  # noqa: B023
        with counted_calls(algorithm) as calls:
            write(algorithm, **options)
        hook.remove()
        assert len(calls) == len(layer) == 12


def test_a_causal_network_loses_nothing_and_sees_no_more_for_it(folder):
    algorithm = model(folder, is_causal=True)
    free, p = write(algorithm)
    cached, q = write(algorithm, block_cache=True)
    assert torch.equal(free, cached)
    torch.testing.assert_close(q, p, rtol=0, atol=1e-10)


def test_a_later_block_is_not_seen(folder):
    """Its tokens may be anything: what is predicted before them stays."""
    network = model(folder).backbone.network
    blocks = (torch.arange(LENGTH) - 4).div(4, rounding_mode="floor")[None]
    tokens = torch.randint(REAL, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    other = tokens.clone()
    other[:, 12:] = 7
    t, rows = torch.zeros(1), torch.ones(1, dtype=torch.bool)
    for earlier in (True, False):
        here, there = (BlockReader(network, blocks, None, earlier, False)(x, t, rows, 0)[:, :12] for x in (tokens, other))
        assert torch.allclose(here, there, atol=1e-10) == earlier


def test_where_all_see_all_a_blocks_first_evaluation_is_whole_and_later_ones_keep_what_was_outside(folder):
    algorithm = model(folder)
    free, p = write(algorithm, steps=4)  # one evaluation a block: nothing to keep
    cached, q = write(algorithm, steps=4, block_cache=True)
    assert torch.equal(free, cached)
    torch.testing.assert_close(q, p, rtol=0, atol=1e-10)

    network = algorithm.backbone.network
    blocks = (torch.arange(LENGTH) - 4).div(4, rounding_mode="floor")[None]
    first = torch.randint(REAL, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    second = first.clone()
    second[:, 9] = (first[:, 9] + 1) % REAL
    t, rows = torch.zeros(1), torch.ones(1, dtype=torch.bool)
    reader = BlockReader(network, blocks, None, False, True)
    whole = reader(first, t, rows, 1)
    kept = reader(second, t, rows, 1)
    torch.testing.assert_close(whole, network.encode(first), rtol=0, atol=1e-10)
    assert torch.equal(kept[:, :8], whole[:, :8]) and torch.equal(kept[:, 13:], whole[:, 13:])
    exact = network.encode(second)[:, 8:12]
    change = (exact - whole[:, 8:12]).norm()
    assert 0 < (kept[:, 8:12] - exact).norm() < 0.7 * change  # most of the change is there, not all of it


def test_documents_and_padding(folder):
    """A row between padding is written as the row alone."""
    algorithm = model(folder)
    alone = canvas(1)
    pad = torch.zeros(1, 3, dtype=torch.long)
    framed = Canvas(
        torch.cat((pad, alone.tokens), 1),
        torch.cat((pad.bool(), alone.editable), 1),
        torch.cat((pad - 1, torch.zeros_like(alone.tokens)), 1),
    )
    for options in ({}, {"block_cache": True}, {"block_cache": True, "block_sees": "earlier"}):
        single, _ = write(algorithm, alone, top_k=1, solver="top_probability", **options)
        padded, _ = write(algorithm, framed, top_k=1, solver="top_probability", **options)
        assert torch.equal(single, padded[:, 3:])


def test_who_cannot_says_so(folder):
    plain = MDLM(lambda **o: DiT(length=4, hidden_size=16, num_blocks=1, num_heads=2, **o), 9, 4)
    with pytest.raises(ValueError, match=r"sampling.block_cache.*model=qwen3"):
        plain.generate(Canvas.blank(1, 4), 2, torch.Generator(), block_cache=True)
    with pytest.raises(
        ValueError, match="DFM with solver=threshold takes no block_cache"
    ):  # before anything is loaded or written
        sampler_for(exact_dfm([0.5, 0.5], "mask"), {"solver": "threshold", "block_cache": True}, "sampling")
    assert sampler_for(model(folder), {"block_cache": True}).block_cache
    flexible = model(folder, attn_implementation="flex_attention")
    with pytest.raises(ValueError, match=r"model.attention=flex_attention.*sampling.block_cache"):
        flexible.generate(Canvas.blank(1, 4), 2, torch.Generator(), block_cache=True)
    assert SHAPE["vocab_size"] > REAL

"""What a step computes and moves at the published size, on tensors without memory: docs/benchmark.md predicts times from it."""

from functools import partial

import pytest
import torch
from live_memory import LiveMemory
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import flm.posterior
from flm.algos.algorithm import Batch
from flm.algos.flm import FLM
from flm.benchmark.dense_twin import _flm, indexed_loss
from flm.draws import Draws
from flm.models.dit import DiT
from flm.paths import clock
from flm.paths.masking import drawn_masks, first_masks, random_masks
from flm.posterior import TokenPosterior
from flm.vocabulary_losses import cross_entropy, cross_entropy_chunk, sums_in_float32

WIDTH, BLOCKS, HEADS, L, V, SEQUENCES = 768, 12, 12, 1024, 50_257, 32
TOKENS = SEQUENCES * L


def flop_of_a_step(make, monkeypatch):
    """By operation, forward and backward, under bf16 autocast; attention written out as products so that it is counted."""
    monkeypatch.setattr(clock, "_tables", clock._tables.__wrapped__)  # neither real tables from before nor fake ones kept
    network = partial(DiT, length=L, hidden_size=WIDTH, num_blocks=BLOCKS, num_heads=HEADS)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        algorithm = make(network, V, L)
        batch = Batch(torch.zeros(SEQUENCES, L, dtype=torch.long), torch.ones(SEQUENCES, L))
        with torch.autocast("cpu", torch.bfloat16):
            total = algorithm.loss(batch, Draws(0)).total
        total.backward()
    return {str(name).removeprefix("aten."): flop for name, flop in counter.get_flop_counts()["Global"].items()}


def test_the_products_of_a_step_are_those_of_the_formula(monkeypatch):
    """28 TFLOP: blocks 16.7, attention 3.7, vocabulary 7.6; what noise adds is half a percent, its Gram matrix not counted."""
    found = flop_of_a_step(FLM, monkeypatch)
    blocks = 3 * 2 * 12 * WIDTH**2 * BLOCKS * TOKENS
    attention = 3 * 4 * L * WIDTH * BLOCKS * TOKENS
    vocabulary = 3 * 2 * V * WIDTH * TOKENS
    assert found["bmm"] == attention
    rest = sum(found.values()) - blocks - attention - vocabulary
    assert [round(x / 1e12, 1) for x in (blocks, attention, vocabulary)] == [16.7, 3.7, 7.6]
    law = 2 * V * WIDTH**2 + 2 * 2 * WIDTH**2 * TOKENS  # the gradient's lift; noise coloured, and the gradient of that
    assert law < rest < 1.02 * law and rest < 0.005 * sum(found.values())  # modulations are the rest of it


def test_memory_of_a_step(monkeypatch):
    """GiB of tensors alive at once, uncompiled, with the chunks of a GPU: 20.5, where the twin with (B, L, V) states has 50.1.
    Gradients are in it; moments and average come to 1.9 more in both."""
    monkeypatch.setattr(clock, "_tables", clock._tables.__wrapped__)
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", flm.posterior.CHUNK_ELEMENTS["cuda"])
    sums_in_float32("cpu", torch.bfloat16)  # tried with numbers
    twin, peaks = _flm(indexed_loss, lambda *_: None), []
    for loss in (lambda algorithm, *given: algorithm.loss(*given).total, twin.loss):
        with FakeTensorMode(), LiveMemory() as memory:
            algorithm = FLM(partial(DiT, length=L, hidden_size=WIDTH, num_blocks=BLOCKS, num_heads=HEADS), V, L)
            batch = Batch(torch.zeros(SEQUENCES, L, dtype=torch.long), torch.ones(SEQUENCES, L))
            with torch.autocast("cpu", torch.bfloat16):
                total = loss(algorithm, batch, Draws(0))
            total.backward()
            peaks.append(memory.peak / 2**30)
            del algorithm, batch, total
    assert peaks == pytest.approx([20.5, 50.1], abs=0.2)


def test_a_masked_diffusion_asks_half_of_the_vocabulary():
    """And at full rows not one position more than it has masks."""
    shares = []
    for seed in range(3):
        points = Draws(seed).points(SEQUENCES)
        masked, _ = random_masks(torch.ones(SEQUENCES, L, dtype=torch.bool), points, Draws(seed).rows)
        rows = first_masks(masked, drawn_masks(points, masked.shape[1]))
        assert len(rows) == masked.sum() and masked.flatten()[rows].all()
        shares.append(len(rows) / TOKENS)
    assert shares == pytest.approx([0.5] * 3, abs=0.01)


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write of tensors of as many elements as a chunk has logits, or more."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.bytes = logits, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [x for x in (*args, found) if isinstance(x, torch.Tensor) and x.numel() >= self.logits]
            self.bytes += sum(x.nbytes for x in tensors)
        return found


def test_bytes_of_the_vocabularys_end_a_logit():
    """Eagerly, a logit and step; what the compiled chunk cannot do without are 10: logits and slope written once in bf16, the
    former read once and the latter by two products."""
    hidden, table = torch.randn(1, 16, 8), torch.randn(64, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), Traffic(16 * 64) as traffic:
        cross_entropy(TokenPosterior(hidden.requires_grad_(), table), torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16))
    assert 10 < traffic.bytes / (16 * 64) <= 74


@pytest.mark.parametrize("soft", [False, True])
def test_the_compiled_chunk_writes_slopes_in_bf16_and_scatters_nothing(soft):
    """Of 50,257 logits a token nothing is written but what a product reads: no scatter, no float32 beside the sums."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    n, width, vocab, rows = 5, 8, 23, 64
    h, table = torch.randn(n, width).bfloat16(), torch.zeros(rows, width).bfloat16()
    table[:vocab] = torch.randn(vocab, width).bfloat16()
    ids = torch.randint(vocab, (n,))
    rest = *((None, torch.rand(n, vocab)) if soft else (ids, None)), None, torch.rand(n), True
    compiled = torch.compile(cross_entropy_chunk.__wrapped__, backend=backend, fullgraph=True)
    out = compiled(h, table, torch.zeros(vocab), 30.0, 1.0, *rest)
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes]
    assert not [name for name in names if "scatter" in name or "one_hot" in name or "index_put" in name]
    assert out[1].shape == (n, rows) and out[1].dtype == torch.bfloat16 and not out[1][:, vocab:].any()
    assert [x.dtype for x in (out[0], out[2])] == [torch.float32] * 2
    plain = cross_entropy_chunk.__wrapped__(h, table, torch.zeros(vocab), 30.0, 1.0, *rest)
    assert [x.shape for x in plain] == [x.shape for x in out]
    torch.testing.assert_close(out[1].float(), plain[1].float(), rtol=1e-2, atol=1e-3)
    torch._dynamo.reset()

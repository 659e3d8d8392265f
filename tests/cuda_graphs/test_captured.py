"""Evaluations that are recorded and replayed: with graphs on a GPU, and with the same memory and no graph everywhere."""

import copy
from contextlib import nullcontext

import pytest
import torch
from every_algorithm import CASES, IDS, V, build
from tasks.running import command, tiny, write_corpus
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from flm.cuda_graphs.captured import SHAPES, Captured, Graph, Rerun, capture
from flm.models.attention import DocumentMask
from flm.models.dit import DiT
from flm.samplers.canvas import Canvas

CPU = torch.device("cpu")
B, L, D = 3, 8, 16
GRAPHS = pytest.param(Graph, marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
both = pytest.mark.parametrize("record", [Rerun, GRAPHS])


def network(record=None, **options):
    torch.manual_seed(0)
    found = DiT(V, L, D, 2, 2, 8, **{"dropout": 0.5, "two_times": True} | options)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = found.eval().to("cuda" if record is Graph else CPU)
    if record is not None:
        found.captured = Captured(found, record)
    return found


def inputs(model, seed=0, rows=B):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, L, D, generator=generator), *torch.rand(2, rows, generator=generator)
    return [x.to(model.input_table.device) for x in made]


def recordings(model):
    return len(model.captured._recordings)


def count_evaluations(model):
    calls = []
    model.output_layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@both
@pytest.mark.parametrize("low", [False, True])
def test_replays_compute_the_same_and_results_outlive_them(record, low):
    model, plain = network(record), network()
    device = model.input_table.device.type
    plain = plain.to(device)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=low):
        pairs = [(model(*inputs(model, seed)).hidden, plain(*inputs(model, seed)).hidden) for seed in range(4)]
    assert recordings(model) == 1
    assert len({tuple(found.flatten().tolist()) for found, _ in pairs}) == 4
    for found, expected in pairs:  # only now: a later replay must not have touched an earlier result
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if device == "cpu" else 1e-2)


@both
def test_each_shape_has_its_recording_and_beyond_some_they_run_as_they_are(record, caplog):
    model, plain = network(record), network()
    plain = plain.to(model.input_table.device)
    with torch.no_grad():
        for rows in (1, 2, 3, 4, 5, 6, 2, 5):
            given = inputs(model, rows, rows)
            torch.testing.assert_close(model(*given).hidden, plain(*given).hidden)
            assert recordings(model) == min(rows if rows != 2 else len(model.captured._recordings), SHAPES)
        given = inputs(model)
        torch.testing.assert_close(model(*given[:2]).hidden, plain(*given[:2]).hidden)  # without a second time
    (line,) = caplog.records
    assert line.getMessage() == "cuda_graphs: 4 shapes are recorded; further ones run as without it, slower"


@both
def test_weights_are_followed_where_they_change_and_where_they_move(record):
    """As the average is put in their place, and as LanguageModel.to moves them."""
    model, plain = network(record), network()
    plain = plain.to(model.input_table.device)
    given = inputs(model)
    with torch.no_grad():
        model(*given)
        for is_moved, change in ((False, lambda x: x.mul_(1.5)), (True, lambda x: setattr(x, "data", x.data + 0.1))):
            (before,) = model.captured._recordings.values()
            for parameter in (*model.parameters(), *plain.parameters()):
                change(parameter)
            torch.testing.assert_close(model(*given).hidden, plain(*given).hidden)
            (after,) = model.captured._recordings.values()
            assert (after is not before) is is_moved  # a graph reads where the weights were


@both
def test_weights_lent_by_torch_func_are_read_and_nothing_is_replayed(record):
    """As a running average is, which teaches."""
    model, given = network(record), inputs(network(record))
    lent = {name: 2 * parameter for name, parameter in model.named_parameters()}
    with torch.no_grad():
        expected = model(*given).hidden
        found = torch.func.functional_call(model, lent, tuple(given)).hidden
        (recording,) = model.captured._recordings.values()
        assert torch.equal(recording.output, expected) and not torch.equal(found, expected)


@both
def test_what_cannot_be_recorded_runs_as_it_is(record):
    """Gradients, training with its dropout, documents."""
    model = network(record)
    given = inputs(model)
    model(*given).hidden.sum().backward()
    assert model.blocks[0].attn_qkv.weight.grad.any()
    with torch.no_grad():
        documents = torch.arange(L, device=given[0].device).div(3, rounding_mode="floor").expand(B, -1)
        found = model.forward(*given, mask=DocumentMask(documents)).hidden
        torch.testing.assert_close(found, model.hidden(*given, DocumentMask(documents)))
        assert not torch.equal(*(model.train()(*given).hidden for _ in range(2)))
    assert recordings(model) == 0


def test_a_copy_of_the_network_is_a_plain_one():
    model = network(Rerun)
    with torch.no_grad():
        model(*inputs(model))
        twin = copy.deepcopy(model)
    assert twin.captured is None and model.captured is not None


def graphless(name, options):
    return name in ("ar", "native_flow", "flow_lm")  # read from left to right, or by a network of their own


@both
@pytest.mark.parametrize("case", range(len(CASES)), ids=IDS)
def test_samplers_write_the_same(case, record):
    """Every algorithm and every sampler of it; replays are counted by evaluations that the network does not see."""
    name, options = CASES[case]
    algorithm = build(name, options).float().eval()
    if graphless(name, options):
        with pytest.raises(ValueError, match="eval.acceleration=cuda_graphs: .* has no network of fixed shape"):
            capture(algorithm, record)
        return
    device = torch.device("cuda" if record is Graph else "cpu")
    algorithm = algorithm.to(device)
    wanted = {}
    for turn in range(2):
        for solver in algorithm.samplers:
            chosen = {} if solver == "" else {"solver": solver}
            for rows, steps in ((2, 1), (2, 3), (1, 3)):
                canvas = Canvas.blank(rows, L, device)
                found = algorithm.generate(canvas, steps, torch.Generator(device).manual_seed(4), **chosen)
                assert torch.equal(found, wanted.setdefault((solver, rows, steps), found)), (solver, rows, steps, turn)
        if turn == 0:
            capture(algorithm, record)
    assert any(recordings(module) for module in algorithm.every_module() if isinstance(module, DiT))


class Host(TorchDispatchMode):
    """Operations that touch the memory of the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in (*args, out)):
            self.found.append(str(function))
        return out


@pytest.mark.parametrize(
    "options", [{}, {"grid": [2, 4]}, {"neighbours": 1}, {"time_insertion": "token"}, {"attention_softcap": 5.0}]
)
def test_an_evaluation_touches_nothing_of_the_host(options, monkeypatch):
    """Else it could not be recorded. On a device without memory, where reading a number is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no such device
    model = network(**options).to("meta")
    given = [x.to("meta") for x in inputs(model)]
    with torch.no_grad(), Host() as host:
        found = model(*given)
    assert found.hidden.device.type == "meta" and not host.found


class Launches(TorchDispatchMode):
    """Operations that compute, each of them a kernel or more on a GPU."""

    NONE = ("prim::device", "aten::promote_types", "aten::_unsafe_view", "aten::empty", "aten::detach")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view and function._schema.name not in self.NONE
        return function(*args, **(kwargs or {}))


def test_launches_of_an_evaluation_at_the_published_size():
    """docs/benchmark.md predicts from these numbers; they do not depend on batch, length and width."""
    found = {}
    with FakeTensorMode(), torch.no_grad():
        model = DiT(30_522, 128, 768, 12, 12, two_times=True).eval()
        given = torch.empty(64, 128, 768), torch.empty(64), torch.empty(64)
        for cached in (True, False):
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
                model(*given)
                with Launches() as launches:
                    model(*given)
            found[cached] = launches.count
    # 42 a block; where nobody keeps weights that were rounded, 8 more a block and two for the rest
    assert found[True] == pytest.approx(12 * 42, abs=10) and found[False] - found[True] == 98


def test_a_run_without_cuda_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    corpus = write_corpus(tmp_path / "corpus")
    run = tmp_path / "run"
    assert command(monkeypatch, *tiny(corpus, f"hydra.run.dir={run}")) == 0
    rest = ["mode=sample_eval", f"eval.checkpoint_path={run}", f"hydra.run.dir={tmp_path / 'eval'}", "trainer.accelerator=cpu"]
    capsys.readouterr()
    assert command(monkeypatch, *tiny(corpus, *rest, "eval.acceleration=cuda_graphs")) == 1
    assert "eval.acceleration=cuda_graphs needs a CUDA device, this is cpu" in capsys.readouterr().err
    assert command(monkeypatch, *tiny(corpus, *rest, "eval.acceleration=graphs")) == 1
    assert "eval.acceleration" in capsys.readouterr().err

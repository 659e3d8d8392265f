"""model.compile and model.fp8: who is compiled or rounded, by whose word, and that nothing else changes."""

import copy
import shutil

import pytest
import torch
from running import config_of
from torch._dynamo.testing import CompileCounter

from flm.algos.algorithm import Batch
from flm.draws import Draws
from flm.models.dit import DiT, DiTBlock
from flm.samplers.canvas import Canvas
from flm.tasks.assemble import check_fp8, new_algorithm
from flm.tasks.machine import MODES, Compilation, compilation, compile_networks

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
CPU = torch.device("cpu")
SMALL = ["model=tiny", "model.hidden_size=32", "model.num_blocks=2", "model.num_heads=2", "model.length=8", "model.dropout=0"]


@pytest.mark.parametrize(
    "wanted, switch, mode",
    [
        ("null", None, None),
        ("null", "TRUE", MODES[1]),
        ("null", "true", MODES[1]),
        ("null", "FALSE", None),
        ("null", "", None),
        ("true", None, "default"),
        ("true", "FALSE", "default"),
        ("false", "TRUE", None),
        (MODES[1], "TRUE", MODES[1]),
    ],
)
def test_the_config_goes_before_the_environment(tmp_path, monkeypatch, wanted, switch, mode):
    monkeypatch.delenv("DIT_USE_COMPILE", raising=False)
    if switch is not None:
        monkeypatch.setenv("DIT_USE_COMPILE", switch)
    found = compilation(config_of(tmp_path, f"model.compile={wanted}").model.compile, CPU)
    assert found.mode == mode and found.is_demanded == (wanted != "null")


def test_on_cuda_networks_are_compiled_unless_somebody_says_no(monkeypatch):
    monkeypatch.delenv("DIT_USE_COMPILE", raising=False)
    cuda = torch.device("cuda")
    assert compilation(None, cuda) == Compilation("default", is_demanded=False)
    assert compilation(False, cuda).mode is None
    monkeypatch.setenv("DIT_USE_COMPILE", "FALSE")
    assert compilation(None, cuda).mode is None


def test_other_values_are_refused_by_name(monkeypatch):
    with pytest.raises(ValueError, match="model.compile=reduce-overhead must be"):
        compilation("reduce-overhead", CPU)  # CUDA graphs
    monkeypatch.setenv("DIT_USE_COMPILE", "maybe")
    with pytest.raises(ValueError, match="DIT_USE_COMPILE=maybe must be TRUE or FALSE"):
        compilation(None, CPU)


def test_without_a_compiler_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="model.compile: there is no compiler"):
        new_algorithm(config_of(tmp_path, *SMALL, "model.compile=true"), 20)


def test_a_network_without_blocks_is_refused_where_compilation_was_demanded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("flm.tasks.machine.missing_compiler", lambda device: None)
    config = config_of(tmp_path, *SMALL)
    algorithm = new_algorithm(config, 20)
    monkeypatch.delattr(DiT, "compile_blocks")
    with pytest.raises(ValueError, match="FLM has no compile_blocks"):
        compile_networks(algorithm, Compilation("default"), CPU)
    compile_networks(algorithm, Compilation("default", is_demanded=False), CPU)
    (record,) = caplog.records
    assert "networks run uncompiled, slower: the network of FLM has no compile_blocks" in record.getMessage()


def pair(tmp_path, *overrides: str):
    """A student with a teacher, all weights away from their start, once as it is and once compiled."""
    config = config_of(tmp_path, *SMALL, "algo=fmlm", *overrides)
    plain = []
    for _ in range(2):
        teacher = new_algorithm(config_of(tmp_path, *SMALL), 20)
        student = new_algorithm(config, 20)
        student._teachers["teacher"] = teacher.requires_grad_(False).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (*teacher.parameters(), *student.parameters()):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        plain.append(student)
    return plain


def step(algorithm, seed=3):
    algorithm.zero_grad()
    tokens = torch.randint(20, (6, 8), generator=torch.Generator().manual_seed(0))
    loss = algorithm.loss(Batch(tokens, torch.ones(6, 8)), Draws(seed)).total
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in algorithm.named_parameters() if p.grad is not None}


def assert_same_step(eager, compiled):
    (loss, gradients), (other, others) = step(eager), step(compiled)
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == others.keys() and len(gradients) > 20
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("objective", ["semigroup", "lagrangian"])
def test_student_and_teacher_are_compiled_although_a_derivative_may_come_first(tmp_path, monkeypatch, objective):
    """Code that torch.compile meets under torch.func.jvp is never compiled afterwards."""
    torch._dynamo.reset()
    counter, compiled_blocks = CompileCounter(), []
    original = DiTBlock.compile

    def counting(block, **options):
        compiled_blocks.append(block)
        original(block, backend=counter)

    monkeypatch.setattr(DiTBlock, "compile", counting)
    monkeypatch.setattr("flm.tasks.machine.missing_compiler", lambda device: None)
    eager, compiled = pair(tmp_path, f"algo.objective={objective}")
    before = list(compiled.state_dict())
    compile_networks(compiled, Compilation("default"), CPU)
    assert len(compiled_blocks) == 4 and list(compiled.state_dict()) == before
    if objective == "lagrangian":
        compiled._teachers["teacher"], kept = None, compiled._teachers["teacher"]
        compiled.diagonal_fraction = 0.0
        step(compiled)  # without diagonal and teacher the derivative is what calls the blocks first
        compiled.diagonal_fraction, compiled._teachers["teacher"] = eager.diagonal_fraction, kept
    assert_same_step(eager, compiled)
    assert counter.frame_count >= 2  # at least with and without gradients
    torch._dynamo.reset()


def test_a_copy_of_a_compiled_model_is_a_plain_one(tmp_path, monkeypatch):
    monkeypatch.setattr("flm.tasks.machine.missing_compiler", lambda device: None)
    compiled = new_algorithm(config_of(tmp_path, *SMALL, "model.compile=true"), 20)
    twin = copy.deepcopy(compiled)
    assert all(block._compiled_call_impl is not None for block in compiled.backbone.blocks)
    assert all(block._compiled_call_impl is None for block in twin.backbone.blocks)


@needs_compiler
@pytest.mark.slow
def test_machine_code_computes_the_same(tmp_path):
    torch._dynamo.reset()
    eager, compiled = pair(tmp_path)
    compile_networks(compiled, Compilation("default"), CPU)
    assert_same_step(eager, compiled)
    torch._dynamo.reset()


@pytest.mark.parametrize("algo, one_size, any_size", [("flm", 2, 4), ("fmlm", 4, 5)])
def test_graphs_of_training_validation_and_sampling(algo, one_size, any_size, tmp_path, monkeypatch):
    """No graph breaks, and few graphs, for one batch size and for any.

    With and without gradients; a flow map's teacher is frozen, and part of its batch is on the diagonal.
    """
    torch._dynamo.reset()
    counter, original = CompileCounter(), DiTBlock.compile
    monkeypatch.setattr(DiTBlock, "compile", lambda block, **options: original(block, backend=counter))
    monkeypatch.setattr("flm.tasks.machine.missing_compiler", lambda device: None)
    algorithm = pair(tmp_path)[1] if algo == "fmlm" else new_algorithm(config_of(tmp_path, *SMALL), 20)
    torch._dynamo.utils.counters.clear()
    compile_networks(algorithm, Compilation("default"), CPU)

    def run(batch):
        tokens = torch.randint(20, (batch, 8), generator=torch.Generator().manual_seed(batch))
        rows = Batch(tokens, torch.ones(batch, 8))
        algorithm.loss(rows, Draws(1)).total.backward()
        with torch.no_grad():
            algorithm.validation_loss(rows, Draws(2))
        for steps in (1, 2, 5):
            algorithm.generate(Canvas.blank(batch, 8, CPU), steps, torch.Generator().manual_seed(0))

    run(6)
    after_one = counter.frame_count
    for batch in (4, 5, 9, 12):
        run(batch)
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    assert not breaks and after_one <= one_size and counter.frame_count <= any_size
    torch._dynamo.reset()


def test_rows_of_documents_compile_whole_where_flex_attention_runs(tmp_path, monkeypatch):
    """As on CUDA: blocks of documents break no graph, and their tensors, new for every batch, make no new one."""
    torch._dynamo.reset()
    counter, original = CompileCounter(), DiTBlock.compile
    monkeypatch.setattr("flm.models.attention.FLEX_ON", {"cpu"})
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    monkeypatch.setattr(DiTBlock, "compile", lambda block, **options: original(block, backend=counter))
    monkeypatch.setattr("flm.tasks.machine.missing_compiler", lambda device: None)
    algorithm = new_algorithm(config_of(tmp_path, *SMALL, "model.attention_softcap=5"), 20)
    torch._dynamo.utils.counters.clear()
    compile_networks(algorithm, Compilation("default"), CPU)
    counts = []
    for seed, size in enumerate((6, 6, 6, 4, 9, 12)):
        generator = torch.Generator().manual_seed(seed)
        documents = torch.randint(2, (size, 8), generator=generator).cumsum(1)
        tokens = torch.randint(20, (size, 8), generator=generator)
        algorithm.loss(Batch(tokens, torch.ones(size, 8), documents), Draws(seed)).total.backward()
        counts.append(counter.frame_count)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert counts[0] == counts[2] <= 2 and counts[4] == counts[5] <= 4
    torch._dynamo.reset()


def test_fp8_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="model.fp8 must be true or false, not yes"):
        check_fp8("yes", CPU)
    monkeypatch.setattr("flm.device.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="model.fp8: torchao is not installed: pip install torchao; or set model.fp8=false"):
        new_algorithm(config_of(tmp_path, *SMALL, "model.fp8=true"), 20)
    monkeypatch.setattr("flm.device.importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match="this GPU has no fp8 products"):
        check_fp8(True, torch.device("cuda"))
    check_fp8(True, CPU)


def test_products_in_fp8_are_those_of_the_blocks_and_nearly_the_same(tmp_path):
    """As a CPU rounds them; parameters, and so checkpoints, are as before."""
    pytest.importorskip("torchao")
    from torchao.float8.float8_linear import Float8Linear

    plain, low = (new_algorithm(config_of(tmp_path, *SMALL, f"model.fp8={fp8}"), 20) for fp8 in ("false", "true"))
    assert list(low.state_dict()) == list(plain.state_dict())
    found = {name for name, module in low.named_modules() if isinstance(module, Float8Linear)}
    layers = ("attn_qkv", "attn_out", "mlp.0", "mlp.2")
    assert found == {f"backbone.blocks.{block}.{layer}" for block in range(2) for layer in layers}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    low.load_state_dict(plain.state_dict())
    (loss, gradients), (other, others) = step(plain), step(low)
    assert gradients.keys() == others.keys() and 0 < (other - loss).abs() < 0.01 * loss
    off = {name: ((others[name] - g).norm() / g.norm()).item() for name, g in gradients.items() if g.norm() > 0}
    assert max(off.values()) < 0.3, off  # at a width of 32

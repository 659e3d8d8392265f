"""What runs on CUDA, run on a stand-in for it: what an ordinary machine can know of branches that otherwise wait for a GPU.

Each test is a process of its own, since from the stand-in on there is a CUDA. What a GPU computes, how fast and in how much
memory, it does not say.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_stand_in.stand_in import build, environment, reason_against

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(reason_against() is not None, reason=str(reason_against()))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("stand_in"))


def output(library, *arguments, status=0, more=()):
    """What a Python prints that has the stand-in; `more`: folders that it imports from, too."""
    there = environment(library, *more, ROOT, ROOT / "tests", ROOT / "tests/tasks") | {"OMP_NUM_THREADS": "1"}
    there = {name: value for name, value in there.items() if not name.startswith("PYTEST_")}  # one of them starts a pytest
    given = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(given, env=there, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


REFUSED = {
    "a tensor of the CPU": "a @ torch.ones(3, 3)",
    "a number of the CPU in a product": "torch.addmm(torch.ones(()), a, a)",
    "a table on the CPU": "torch.nn.functional.embedding(a.long(), torch.ones(3, 3))",
    "picked by the CPU's indices": "a.gather(1, torch.zeros(3, 3).long())",
    "a generator of the CPU": "torch.rand(3, device='cuda', generator=torch.Generator())",
    "a CPU tensor drawn with its generator": "torch.rand(3, generator=torch.Generator('cuda'))",
    "a product of integers": "a.long() @ a.long()",
    "its memory as numpy's": "a.numpy()",
    "written into the CPU's": "torch.ones(3, 3).add_(a)",
    "a graph that waits": "graph(lambda: a.sum().item())",
    "a graph that reads the CPU's memory": "graph(lambda: a + torch.ones(3).to('cuda'))",
    "another GPU": "torch.ones(3, device='cuda:1')",
}
TAKEN = {
    "numbers of the CPU": "a + torch.tensor(2.0), torch.where(a > 0, torch.tensor(1.0), a)",
    "the CPU's indices": "a[torch.tensor([0, 2])]",
    "a copy": "a.copy_(torch.ones(3, 3)), torch.ones(3, 3).copy_(a), a.cpu() + torch.ones(3, 3)",
    "a product summed in full": "torch.addmm(a, a.bfloat16(), a.bfloat16(), out_dtype=torch.float32)",
    "a graph": "graph(lambda: (a @ a).exp_()).replay()",
}
TRIES = """
import json, sys, torch
a = torch.arange(9.0, device="cuda").view(3, 3)
def graph(function):
    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made, torch.cuda.graph_pool_handle(), capture_error_mode="thread_local"):
        function()
    return made
found = {}
for name, text in json.loads(sys.argv[1]).items():
    try:
        eval(text)
        found[name] = ""
    except Exception as error:
        found[name] = type(error).__name__
print(json.dumps(found))
"""


def test_the_stand_in_refuses_what_cuda_refuses_and_takes_the_rest(library):
    found = json.loads(output(library, "-c", TRIES, json.dumps(REFUSED | TAKEN)).splitlines()[-1])
    assert [name for name in REFUSED if not found[name]] == [] == [name for name in TAKEN if found[name]]


def faults(printed):
    found = json.loads(printed.splitlines()[-1])
    return found["calls"], found["faults"]


def test_every_algorithm_runs(library):
    """Steps, validation, bounds and every sampler: no tensor and no generator is left on the CPU, and each branch holds."""
    calls, failed = faults(output(library, HERE / "walk.py"))
    assert calls > 300 and not failed, json.dumps(failed, indent=1)


@pytest.mark.slow
def test_every_option_of_every_sampler_runs(library):
    calls, failed = faults(output(library, HERE / "walk.py", "all"))
    assert calls > 3000 and not failed, json.dumps(failed, indent=1)


BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
import walk
from flm.draws import Draws
Draws.moved = lambda self, tensor: tensor
some = [(case, name) for case, name in zip(walk.CASES, walk.IDS) if name in ("flm", "mdlm", "fmlm", "duo")]
walk.CASES, walk.IDS = zip(*some)
walk.main(False)
"""


def test_what_stays_on_the_cpu_is_found(library):
    """The walk with draws that nobody moves to the device."""
    _, failed = faults(output(library, "-c", BROKEN, HERE))
    assert {"flm: step", "mdlm: step", "fmlm: validation", "duo: bound"} <= set(failed)


def test_the_check_of_a_gpu_runs_and_nothing_is_off(library):
    sections = ["correct", "pieces", "step", "sampling", "graphs"]
    out = output(library, "scripts/gpu_check.py", "--small", *sections)
    about = json.loads(out.splitlines()[-1])
    assert about["off"] == about["broken_off"] == [] and "OFF" not in out and "compiled, 1 texts: replayed twice" in out


def test_flash_attention_is_called_as_it_wants(library, tmp_path):
    """A package of its name, with the signature of 2.6, in its layout, and beside blocks that torch.compile traces."""
    (tmp_path / "flash_attn-2.6.3.dist-info").mkdir()
    (tmp_path / "flash_attn-2.6.3.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.6.3\n")
    (tmp_path / "flash_attn.py").write_text(
        "import torch\ncalls = []\n"
        "def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,\n"
        "                    alibi_slopes=None, deterministic=False, return_attn_probs=False):\n"
        "    calls.append(q.shape)\n"
        "    scores = torch.einsum('blhd,bmhd->bhlm', q.float(), k.float()) / q.shape[-1] ** 0.5\n"
        "    scores = softcap * torch.tanh(scores / softcap)\n"
        "    if causal:\n"
        "        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)\n"
        "    return torch.einsum('bhlm,bmhd->blhd', scores.softmax(-1), v.float()).to(q.dtype)\n"
    )
    text = "import sys, runpy, flash_attn; sys.argv[1:] = ['--small', 'correct']\n"
    text += "try: runpy.run_path('scripts/gpu_check.py', run_name='__main__')\nfinally: print(len(flash_attn.calls))"
    out = output(library, "-c", text, more=[tmp_path]).splitlines()
    assert json.loads(out[-2])["off"] == [] and int(out[-1]) == 4  # whole and causal; two blocks


def test_tests_marked_gpu_pass(library):
    out = output(library, "-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "tests/cuda_graphs", "-k", "not samplers")
    assert " passed" in out and "skipped" not in out


COMMANDS = """
import sys
from pathlib import Path
from running import tiny, write_corpus
from flm.tasks.command_line import main
folder = Path(sys.argv[1])
corpus, run = write_corpus(folder / "corpus"), folder / "run"
for more in (
    [f"hydra.run.dir={run}", "training.ema=0.9", "model.compile=true"],
    ["mode=sample_eval", "eval.acceleration=cuda_graphs"],
    ["mode=ppl_eval"],
):
    rest = [] if "training.ema=0.9" in more else [f"eval.checkpoint_path={run}", f"hydra.run.dir={folder / more[0]}"]
    sys.argv[1:] = tiny(corpus, "trainer.accelerator=gpu", *more, *rest)
    assert main() == 0, more
"""


def test_commands_train_sample_and_score(library, tmp_path):
    output(library, "-c", COMMANDS, tmp_path)
    results = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.json")]
    assert sum('"device": "cuda"' in result for result in results) == 2

"""Checks and times what runs on a GPU: correctness of each CUDA branch, pieces of a step, whole steps, sampling, the trainer.

`bash scripts/gpu_check.sh [SECTION ...]` starts it. It ends with status 1 if a value is further off than it may be. Its time it
keeps itself: a section that takes more than its share is broken off, and so is all that is left after --minutes.
"""

import argparse
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without an installation, too

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flm.algos.algorithm import Algorithm, Batch
from flm.algos.flm import FLM
from flm.algos.fmlm import FMLM
from flm.algos.mdlm import MDLM
from flm.benchmark.benchmark_process import logits
from flm.checkpoints.load import read_checkpoint
from flm.cuda_graphs.captured import Captured, Graph, Rerun
from flm.draws import Draws
from flm.duo.duo import Duo
from flm.kl_flow.kl_flow import KLFlow
from flm.models.attention import DocumentMask, _written_out_attention, attention, forward_mode_attention
from flm.models.dit import DiT
from flm.paths.gaussian import ProjectedNoise, noise_for
from flm.posterior import TokenPosterior
from flm.samplers.canvas import Canvas
from flm.training.cost import FlopCount, device_name, peak_flops, peak_memory_mb
from flm.training.optimizers import AdamW
from flm.vocabulary_losses import cross_entropy, cross_entropy_chunk

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Sizes:
    """Of the published recipes, or of toys."""

    width: int = 768
    blocks: int = 12
    length: int = 1024
    batch: int = 32
    vocabularies: tuple[int, ...] = (50_257, 30_522, 50_304)
    chunk: int = 4682  # tokens whose logits exist at once
    steps: int = 12
    trainer_steps: int = 10


SMALL = Sizes(32, 2, 16, 4, (211, 122, 256), 37, 2, 2)


class OutOfTime(BaseException):
    """Passes by whoever catches exceptions of the code that is checked."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends the block by `OutOfTime`, once the interpreter comes to it."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Check:
    """One run of the script: where, how large, and what was off."""

    def __init__(self, device: torch.device, sizes: Sizes):
        self.device, self.sizes = device, sizes
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def within(self, name: str, value: float, most: float) -> None:
        is_right = value <= most
        self.say(f"{'ok  ' if is_right else 'OFF '} {name}: {value:.1e}, at most {most:.0e}")
        if not is_right:
            self.failed.append(name)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, function: Callable[[], object], times: int = 10) -> float:
        """Median of single calls, after two that warm up."""
        found = []
        for _ in range(times + 2):
            self.synchronise()
            start = time.perf_counter()
            function()
            self.synchronise()
            found.append(1e3 * (time.perf_counter() - start))
        return statistics.median(found[2:])

    def network(self, make: type[Algorithm], vocab_size: int, softcap: float | None = None, **options: object) -> Algorithm:
        sizes = self.sizes
        shape = {
            "length": sizes.length,
            "hidden_size": sizes.width,
            "num_blocks": sizes.blocks,
            "num_heads": sizes.width // 64 or 2,
        }
        network = partial(DiT, **shape, attention_softcap=softcap, output_softcap=None if make is MDLM else 30.0)
        torch.manual_seed(0)
        return make(network, vocab_size, sizes.length, **options).to(self.device)

    def batch(self, vocab_size: int) -> Batch:
        shape = (self.sizes.batch, self.sizes.length)
        tokens = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1)).to(self.device)
        return Batch(tokens, torch.ones(shape, device=self.device))


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative distance in norm."""
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def tests(check: Check) -> None:
    """The tests marked gpu."""
    if check.device.type != "cuda":
        check.say("none on a CPU")
        return
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], capture_output=True, text=True, cwd=ROOT
    )
    for line in done.stdout.strip().splitlines()[-12:]:
        check.say(line)
    if done.returncode not in (0, 5):  # 5: there are none
        check.failed.append("tests marked gpu")


def correct(check: Check) -> None:
    """Values and gradients against float64, draws against the CPU and their law."""
    device, dtype = check.device, check.dtype
    rough = 1e-2 if dtype == torch.bfloat16 else 1e-5
    documents = torch.arange(200, device=device).div(70, rounding_mode="floor").expand(2, 200)
    for cap in (50.0, None):
        for causal, mask in ((False, None), (True, None), (False, DocumentMask(documents))):
            q, k, v = (torch.randn(2, 4, 200, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
            seen = None if mask is None else mask.for_kernels(q, 64, causal)
            out = attention(q, k, v, cap, causal, seen)
            upstream = torch.randn_like(out)
            exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
            visible = documents.new_ones(200, 200, dtype=torch.bool).tril() if causal else None if mask is None else mask.dense

            def written(*x: Tensor, cap: float | None = cap, visible: Tensor | None = visible) -> Tensor:
                return _written_out_attention(*x, cap or 1e9, visible)

            wanted = written(*exact)
            pairs = zip(
                torch.autograd.grad(out, (q, k, v), upstream),
                torch.autograd.grad(wanted, exact, upstream.double()),
                strict=True,
            )
            kind = f"softcap {cap}, {'causal' if causal else 'documents' if mask is not None else 'all'}"
            check.within(f"attention {kind}", off(out, wanted), rough)
            check.within(f"attention {kind}, gradients", max(off(*pair) for pair in pairs), rough)
            primals, tangents = (tuple(x.detach() for x in values) for values in ((q, k, v), (upstream, q, k)))
            with forward_mode_attention(), torch.no_grad():
                options = cap, causal, None if mask is None else mask.dense
                _, moved = torch.func.jvp(lambda *x, options=options: attention(*x, *options), primals, tangents)
                exactly = [tuple(x.double() for x in values) for values in (primals, tangents)]
                check.within(f"attention {kind}, forward mode", off(moved, torch.func.jvp(written, *exactly)[1]), rough)
    width = check.sizes.width
    for vocab_size in check.sizes.vocabularies:
        hidden = torch.randn(2, 350, width, device=device, requires_grad=True)
        table = (torch.randn(vocab_size, width, device=device) * 0.02).requires_grad_()
        bias = torch.zeros(vocab_size, device=device, requires_grad=True)
        tokens = torch.randint(vocab_size, (2, 350), device=device)
        with check.autocast():
            weight = torch.full((2, 350), 1 / 700, device=device)
            total, _ = cross_entropy(TokenPosterior(hidden, table, bias, 30.0), tokens, weight)
        exact = [x.detach().double().requires_grad_() for x in (hidden, table, bias)]
        logits = 30 * torch.tanh((exact[0].view(-1, width) @ exact[1].T + exact[2]) / 30)
        wanted = F.cross_entropy(logits, tokens.view(-1))
        pairs = zip(torch.autograd.grad(total, (hidden, table, bias)), torch.autograd.grad(wanted, exact), strict=True)
        check.within(f"cross-entropy, V {vocab_size}", abs(total.item() - wanted.item()), rough)
        check.within(f"cross-entropy, V {vocab_size}, gradients", max(off(*pair) for pair in pairs), rough)
    table = torch.randn(check.sizes.vocabularies[0], width) * 0.02
    check.within(
        "noise factor against the CPU's", off(noise_for((table.to(device),)).factor.cpu(), noise_for((table,)).factor), 1e-6
    )
    times = Draws(1, 3, device=device).stratified(64).cpu()
    check.within("stratified times against the CPU's", (times - Draws(1, 3).stratified(64)).abs().max().item(), 0)
    _draws(check)
    _network(check)
    _samplers(check)


def _draws(check: Check) -> None:
    """Tokens drawn of known probabilities: chi-square over its degrees of freedom, which is 1 on average."""
    count, size = 1 << 14, 61
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0))
    hidden = torch.ones(1, count, 1, device=check.device)
    drawn = TokenPosterior(hidden, logits[:, None].to(check.device)).draw(torch.Generator(check.device).manual_seed(1))
    expected = count * logits.double().softmax(0)
    found = torch.bincount(drawn.flatten().cpu(), minlength=size)
    square = ((found - expected).square() / expected).sum().item() / (size - 1)
    check.within(f"chi-square of {count} drawn tokens a degree of freedom", square, 1 + 5 * math.sqrt(2 / (size - 1)))


def _network(check: Check) -> None:
    """Logits and gradients of a compiled network at odd V, beside the same weights in float32 on the CPU."""
    vocab_size, width = check.sizes.vocabularies[0], check.sizes.width
    for softcap in (None, 50.0):
        shape = {"hidden_size": width, "num_blocks": 2, "num_heads": width // 64 or 2, "attention_softcap": softcap}
        torch.manual_seed(0)
        ours = DiT(vocab_size, length=check.sizes.length, dropout=0.0, **shape)
        for parameter in ours.parameters():
            if not parameter.any():  # gates, which would leave out what stands behind them
                torch.nn.init.normal_(parameter, std=0.02)
        theirs, ours = deepcopy(ours), ours.to(check.device)
        if check.device.type == "cuda":
            ours.compile_blocks()
        view = torch.randn(2, check.sizes.length, width)
        tokens, weight = torch.randint(vocab_size, view.shape[:2]), torch.full(view.shape[:2], 1 / view.shape[:2].numel())
        losses = []
        for network in (ours, theirs):
            device = network.input_table.device
            on_gpu = device.type == "cuda"
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                posterior = network(view.to(device), torch.full((2,), 0.5, device=device))
                losses.append(cross_entropy(posterior, tokens.to(device), weight.to(device))[0])
            losses[-1].backward()
        kind = f"network with softcap {softcap}, odd V"
        rough = 3e-2 if check.dtype == torch.bfloat16 else 1e-4
        check.within(f"{kind}: loss", abs(losses[0].item() - losses[1].item()), rough)
        slopes = (
            torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])
            for network in (ours, theirs)
        )
        check.within(f"{kind}: gradients", off(*slopes), rough)
        torch._dynamo.reset()


def _samplers(check: Check) -> None:
    """Sampling the same way again gives the same tokens."""
    vocab_size = check.sizes.vocabularies[1]
    for make in (FLM, FMLM, MDLM, Duo):
        algorithm = check.network(make, vocab_size).eval()
        canvas = Canvas.blank(4, check.sizes.length, check.device)
        with torch.no_grad(), check.autocast():
            tokens = [algorithm.generate(canvas, 4, torch.Generator(check.device).manual_seed(5)) for _ in range(2)]
        check.within(f"{make.__name__}: the same seed, the same tokens", (tokens[0] != tokens[1]).double().mean().item(), 0)


def pieces(check: Check) -> None:
    """Parts of a step: what each change of the vocabulary end or the noise law would gain."""
    n, width, device = check.sizes.chunk, check.sizes.width, check.device
    made = {"device": device, "dtype": check.dtype}
    odd, _, even = check.sizes.vocabularies
    for vocab_size in (odd, even):
        _products(check, vocab_size)
    padded = torch.zeros(n, even, **made)[:, :odd]
    table, h = torch.randn(odd, width, **made), torch.randn(n, width, **made)
    to_hidden, to_table = check.milliseconds(lambda: padded @ table), check.milliseconds(lambda: padded.T @ h)
    check.say(f"V {odd} with rows of {even}: to hidden {to_hidden:.2f} ms, to table {to_table:.2f} ms")
    ids, weight = torch.randint(odd, (n,), device=device), torch.ones(n, device=device)
    rest = (h, table, torch.zeros(odd, device=device), 30.0, 1.0, ids, None, None, weight, True)
    compiled, eager = (check.milliseconds(lambda f=f: f(*rest)) for f in (cross_entropy_chunk, cross_entropy_chunk.__wrapped__))
    check.say(f"a chunk of cross-entropy with its slope: {compiled:.2f} ms, uncompiled {eager:.2f} ms")
    wide = torch.randn(odd, width, device=device) * 0.02
    law, moments = ProjectedNoise((wide,)), torch.randn(width, width, device=device)
    whole, product = check.milliseconds(lambda: ProjectedNoise((wide,))), check.milliseconds(law._gram)
    check.say(f"noise law {whole:.2f} ms: of it W^T W {product:.2f}")
    white = torch.randn(check.sizes.batch * check.sizes.length, width, device=device)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        views, lift = check.milliseconds(lambda: law.views(white)), check.milliseconds(lambda: law.lift(moments))
        check.say(f"fp32 products {precision}: views {views:.2f} ms, lift {lift:.2f}")
    torch.set_float32_matmul_precision("highest")
    shape = (check.sizes.batch, max(1, width // 64), check.sizes.length, 64)
    q, k, v = (torch.randn(shape, **made).requires_grad_() for _ in range(3))
    rows = torch.arange(shape[2], device=device).div(max(1, shape[2] // 4), rounding_mode="floor").expand(shape[0], -1)
    mask = DocumentMask(rows).for_kernels(q, shape[3], False)
    kinds = {
        f"softcap {cap}, {name}": (cap, *how)
        for cap in (None, 50.0)
        for name, how in (("all", (False, None)), ("causal", (True, None)), ("four documents", (False, mask)))
    }
    for kind, how in kinds.items():
        _attended(check, f"attention, {kind}", lambda how=how: attention(q, k, v, *how), (q, k, v))
    if device.type == "cuda":
        for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
            try:
                with sdpa_kernel(getattr(SDPBackend, name)):
                    _attended(check, f"torch's {name}", lambda: F.scaled_dot_product_attention(q, k, v), (q, k, v))
            except RuntimeError as error:
                check.say(f"torch's {name}: not here ({str(error).splitlines()[0][:80]})")


def _attended(check: Check, name: str, function: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> None:
    batch, heads, length, width = inputs[0].shape
    flop = 4e-9 * batch * heads * length**2 * width  # of all pairs, also where some are not looked at
    out = function()
    upstream = torch.randn_like(out)
    forward = check.milliseconds(function)
    backward = check.milliseconds(lambda: torch.autograd.grad(out, inputs, upstream, retain_graph=True))
    check.say(f"{name}: forward {forward:.2f} ms, {flop / forward:.0f} TFLOP/s; backward {backward:.2f} ms")


def _products(check: Check, vocab_size: int) -> None:
    n, width, made = check.sizes.chunk, check.sizes.width, {"device": check.device, "dtype": check.dtype}
    h, table, slope = torch.randn(n, width, **made), torch.randn(vocab_size, width, **made), torch.randn(n, vocab_size, **made)
    products = {"logits": lambda: h @ table.T, "to hidden": lambda: slope @ table, "to table": lambda: slope.T @ h}
    for name, product in products.items():
        took = check.milliseconds(product)
        check.say(f"{name}, V {vocab_size}: {took:.2f} ms, {2e-9 * n * vocab_size * width / took:.0f} TFLOP/s")


def step(check: Check) -> None:
    """Training steps without the trainer, compiled and not, and where the time goes; FLM with the recipe's softcap, too."""
    for make in (FLM, MDLM, FMLM, Duo, KLFlow):
        _steps(check, make, None, True)
    for is_compiled in (True, False):
        _steps(check, FLM, 50.0, is_compiled)
    for make in (FLM, MDLM, FMLM, Duo, KLFlow):
        _steps(check, make, None, False)


def _steps(check: Check, make: type[Algorithm], softcap: float | None, is_compiled: bool) -> None:
    name = f"{make.__name__}{'' if softcap is None else f', softcap {softcap:g}'}{'' if is_compiled else ', uncompiled'}"
    vocab_size, on_cuda = check.sizes.vocabularies[0], check.device.type == "cuda"
    algorithm = check.network(make, vocab_size, softcap).train()
    if is_compiled and on_cuda:
        algorithm.backbone.compile_blocks()
    trained = [p for p in algorithm.parameters() if p.requires_grad]
    optimizer, batch = AdamW(trained, lr=1e-4, weight_decay=0.0), check.batch(vocab_size)

    def one(number: int) -> Tensor:
        with check.autocast():
            loss = algorithm.loss(batch, Draws(1, number, device=check.device)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    start = time.perf_counter()
    first = one(0).item()
    check.say(f"{name}: loss {first:.4f}, first step {time.perf_counter() - start:.0f} s")
    check.within(f"{name}: first loss over that of a uniform guess", first / math.log(vocab_size), 1.5)
    steps = check.sizes.steps if is_compiled else max(2, check.sizes.steps // 3)
    one(1)  # what is allocated or compiled a second time is so now
    with FlopCount().watching(algorithm.every_module()) as count:
        check.synchronise()
        start = time.perf_counter()
        for number in range(steps):
            one(2 + number)
        queued = (time.perf_counter() - start) / steps
        check.synchronise()
        seconds = (time.perf_counter() - start) / steps
    peak = peak_flops(check.device)
    share = "" if peak is None else f", utilisation {count.total / steps / seconds / peak:.3f}"
    rate, memory = batch.tokens.numel() / seconds, peak_memory_mb(check.device)
    check.say(
        f"{name}: {1e3 * seconds:.1f} ms, {rate:,.0f} tokens/s{share}, host {1e3 * queued:.1f} ms, peak {memory:,.0f} MiB"
    )
    if make is FLM and is_compiled and on_cuda:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            one(0)
            check.synchronise()
        print(profile.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=70))
    torch._dynamo.reset()


def sampling(check: Check) -> None:
    """1 and 8 steps at both published sizes, over evaluations of the network and its logits."""
    _sampled(check, check.sizes.vocabularies[1], min(128, check.sizes.length))
    _sampled(check, check.sizes.vocabularies[0], check.sizes.length)


def _sampled(check: Check, vocab_size: int, length: int) -> None:
    algorithm, batch = check.network(FMLM, vocab_size).eval(), 2 * check.sizes.batch
    if check.device.type == "cuda":
        algorithm.backbone.compile_blocks()
    canvas, generator = Canvas.blank(batch, length, check.device), torch.Generator(check.device).manual_seed(0)
    view, tau = torch.randn(batch, length, check.sizes.width, device=check.device), torch.zeros(batch, device=check.device)
    with torch.no_grad(), check.autocast():
        times = {steps: check.milliseconds(lambda n=steps: algorithm.generate(canvas, n, generator), 3) for steps in (1, 8)}
        posterior = algorithm.backbone(view, tau, tau)
        trunk = check.milliseconds(lambda: algorithm.backbone(view, tau, tau), 3)
        last = check.milliseconds(lambda: logits(posterior), 3)
    for steps, took in times.items():
        parts = f"{took / steps / (trunk + last):.2f} of trunk and logits a step"
        check.say(
            f"V {vocab_size}, L {length}, batch {batch}, {steps} steps: {took:.1f} ms, {took / batch:.2f} ms a text, {parts}"
        )
    torch._dynamo.reset()


def graphs(check: Check) -> None:
    """An evaluation of the network called and replayed, at the size of LM1B, many texts at a time and one."""
    length, record = min(128, check.sizes.length), Graph if check.device.type == "cuda" else Rerun
    rough = 1e-2 if check.dtype == torch.bfloat16 else 1e-6
    for name in ("uncompiled", "compiled") if check.device.type == "cuda" else ("uncompiled",):
        network = check.network(FMLM, check.sizes.vocabularies[1]).eval().backbone
        if name == "compiled":
            network.compile_blocks()
        for parameter in network.parameters():
            if not parameter.any():  # gates, which would leave out what stands behind them
                torch.nn.init.normal_(parameter, std=0.02)
        network.captured = captured = Captured(network, record)
        for batch in (2 * check.sizes.batch, 1):
            view, tau = torch.randn(batch, length, check.sizes.width, device=check.device), torch.rand(batch)
            given = view, tau.to(check.device), tau.to(check.device)
            with torch.no_grad(), check.autocast():
                found, again = captured(*given), captured(*given)
                check.within(f"{name}, {batch} texts: replayed beside called", off(found, network.hidden(*given)), rough)
                check.within(f"{name}, {batch} texts: replayed twice", off(again, found), 0)
                calls, replays = (check.milliseconds(lambda f=f, x=given: f(*x)) for f in (network.hidden, captured))
            memory = peak_memory_mb(check.device)
            check.say(f"{name}, {batch} texts: called {calls:.2f} ms, replayed {replays:.2f}, peak so far {memory:,.0f} MiB")
        torch._dynamo.reset()


def trainer(check: Check) -> None:
    """Ten steps by the command line under each strategy, and going on from a checkpoint, beside a run that never stopped."""
    size = ["model=tiny", "model.length=32"] if check.sizes is SMALL else ["model=small", f"model.length={check.sizes.length}"]
    steps = check.sizes.trainer_steps
    quick = ["tokenizer=bytes", f"loader.global_batch_size={check.sizes.batch}", "trainer.limit_val_batches=0", "logger=none"]
    quick += ["callbacks.sample=null", "callbacks.generation=null"]
    quick += [f"callbacks.checkpoint_every_n_steps.every_n_train_steps={steps}", f"trainer.accelerator={check.device.type}"]
    strategies = ("auto", "ddp", "fsdp2") if check.device.type == "cuda" else ("auto",)
    with tempfile.TemporaryDirectory() as folder:
        # the second goes on where the first stopped; the third is what both should have come to
        runs = [(strategy, strategy, most) for strategy in strategies for most in (steps, 2 * steps)]
        runs.insert(2, ("auto", "whole", 2 * steps))
        for strategy, name, most in runs:
            command = [sys.executable, str(ROOT / "main.py"), "experiment=pydoc_flm", *size, *quick, f"strategy={strategy}"]
            command += [f"trainer.max_steps={most}", f"hydra.run.dir={folder}/{name}", f"data.cache_dir={folder}/data"]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            took = time.perf_counter() - start
            last = " | ".join((done.stdout + done.stderr).strip().splitlines()[-2:])[-200:]
            check.say(f"strategy={strategy}, {most} steps: status {done.returncode}, {took:.0f} s: {last}")
            if done.returncode:
                check.failed.append(f"strategy={strategy}: {done.stderr.strip()[-500:]}")
            elif name == "whole":
                stopped, whole = (
                    read_checkpoint(f"{folder}/{of}/checkpoints/step_{most:07d}.ckpt").state for of in ("auto", "whole")
                )
                furthest = max(off(stopped[key], whole[key]) for key in whole if whole[key].double().norm() > 0)
                # a GPU adds up a table's gradient in another order every time
                check.within("a run that went on beside one that never stopped", furthest, 1e-3 * (check.device.type == "cuda"))


# with the seconds that each may take of a run of all
SECTIONS = {
    "tests": (tests, 70),
    "correct": (correct, 90),
    "pieces": (pieces, 60),
    "step": (step, 170),
    "sampling": (sampling, 60),
    "graphs": (graphs, 40),
    "trainer": (trainer, 130),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all if none is named")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes, to try the script itself")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it ends, whatever is left")
    given = parser.parse_args()
    unknown = set(given.sections) - set(SECTIONS)
    if unknown or (given.device.startswith("cuda") and not torch.cuda.is_available()):
        why = (
            f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}"
            if unknown
            else "torch finds no CUDA device: --device cpu --small tries the script"
        )
        print(f"error: {why}", file=sys.stderr)
        return 1
    check, start = Check(torch.device(given.device), SMALL if given.small else Sizes()), time.perf_counter()
    wanted = {name: found for name, found in SECTIONS.items() if not given.sections or name in given.sections}
    limit, all_seconds = 60 * given.minutes, sum(seconds for _, seconds in wanted.values())
    broken_off = []
    for name, (section, seconds) in wanted.items():
        began = time.perf_counter()
        left = limit - (began - start) - 5  # to say what was found
        # its share of the whole, or of what is left: what others did not use is to be had
        share = max(limit * seconds / max(all_seconds, 540), left * seconds / all_seconds)
        all_seconds -= seconds
        print(f"== {name} (at {began - start:.0f} s, at most {min(share, left):.0f}): {section.__doc__}", flush=True)
        try:
            with at_most(min(share, left)):
                section(check)
        except OutOfTime:
            check.say("its time is up: what is left of it was not done")
            broken_off.append(name)
        except Exception:  # the sections that follow are worth having
            traceback.print_exc()
            check.failed.append(name)
        if check.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"   {time.perf_counter() - began:.0f} s", flush=True)
    about = {"device": device_name(check.device), "torch": torch.__version__, "seconds": round(time.perf_counter() - start)}
    print(json.dumps(about | {"broken_off": broken_off, "off": check.failed}))
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""A CUDA device for a torch that was built without one, in a process that is started in `environment(build(folder))`.

Its tensors say that they are on cuda:0 and lie in the CPU's memory, where the CPU's kernels compute on them (`stand_in.cpp`).
So branches for CUDA run, with numbers, and a tensor or a generator that was left on the CPU is an error as on a GPU. What
`torch.cuda` asks of the library that is not there, is answered below that module, so that its own signatures hold.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).parent


def reason_against() -> str | None:
    """Why it cannot be built here; None if it can."""
    if torch.cuda._is_compiled():
        return "this torch was built with CUDA, which the stand-in takes the place of"
    if shutil.which("g++") is None:
        return "no C++ compiler: g++ is not installed"
    if not (TORCH / "include/ATen/detail/CUDAHooksInterface.h").exists():
        return "torch was installed without its headers"
    return None


def build(folder: Path) -> Path:
    """The library, compiled against the torch that is installed, in some 12 s."""
    library = folder / "cuda_stand_in.so"
    include = [f"-I{TORCH / 'include'}", f"-I{TORCH / 'include/torch/csrc/api/include'}"]
    given = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", "-w", *include, str(HERE / "stand_in.cpp")]
    subprocess.run([*given, "-o", str(library), f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
    return library


def _lax() -> tuple[list[str], list[str]]:
    """Operators of which CUDA checks less than that all tensors are on one device, as torch's own table of operators says.

    The first take numbers of the CPU, those among them that are the second any of its tensors, to copy or to index with.
    """
    table, found = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml", []
    for entry in table.read_text(encoding="utf-8").split("\n- func: ")[1:]:
        if "\n  device_check: NoCheck" in entry:
            found.append(f"aten::{entry.partition('(')[0]}")
    anything = tuple(f"aten::{name}" for name in ("copy_", "index.Tensor", "_index_put_impl_"))
    return found, [name for name in found if name.startswith(anything)]


class _Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        found = function(*args, **(kwargs or {}))
        for tensor in (*args, found):
            if isinstance(tensor, torch.Tensor) and not tensor.is_cuda and tensor.dim():
                raise RuntimeError(f"operation not permitted when stream is capturing: {name} of the CPU's memory")
        self.calls.append((function, args, kwargs or {}, found))
        return found


class _Graph:
    """Of torch._C._CUDAGraph: operations in the order they came, done again into the same memory."""

    def __new__(cls, keep_graph: bool = False) -> Any:
        return object.__new__(cls)

    def __init__(self, keep_graph: bool = False) -> None:
        self._recorded = _Recorded()

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        self._recorded.__enter__()

    def capture_end(self) -> None:
        self._recorded.__exit__(None, None, None)

    def replay(self) -> None:
        with torch.autocast("cuda", enabled=False):  # what was rounded was so ahead of what is recorded
            for function, args, kwargs, before in self._recorded.calls:
                after = before if function.is_view else function(*args, **kwargs)
                pairs = zip(before, after, strict=True) if isinstance(after, (tuple, list)) else [(before, after)]
                for old, new in pairs:
                    if isinstance(new, torch.Tensor) and new is not old:
                        old.copy_(new)

    def reset(self) -> None:
        self._recorded = _Recorded()


class _Stream:
    def __new__(cls, priority: int = 0, stream_id: int = 0, device_index: int = 0, device_type: int = 1) -> Any:
        made = object.__new__(cls)
        made.stream_id, made.device_index, made.device_type = stream_id, device_index, device_type
        made.device, made.cuda_stream = torch.device("cuda", 0), 0
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class _Event:
    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **_: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.is_recorded = False

    def record(self, stream: Any) -> None:
        self.is_recorded = True

    def wait(self, stream: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        assert self.is_recorded


def _become(base: type, stand_in: type) -> None:
    for name, value in vars(stand_in).items():
        if callable(value) or name in ("__new__", "__init__"):
            setattr(base, name, value)


def install() -> None:
    """For the rest of the process, which no longer is one without CUDA."""
    torch.ops.cuda_stand_in.rules(*_lax())
    properties = SimpleNamespace(
        name="NVIDIA H100 stand-in", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
    )
    answers: dict[str, Callable[..., Any]] = {
        "_cuda_init": lambda: None,
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": lambda index: None,
        "_cuda_synchronize": lambda: None,
        "_cuda_getCurrentStream": lambda index: (0, 0, 1),
        "_cuda_getDefaultStream": lambda index: (0, 0, 1),
        "_cuda_getCurrentRawStream": lambda index: 0,
        "_cuda_setStream": lambda stream_id, device_index, device_type: None,
        "_cuda_isCurrentStreamCapturing": lambda: False,
        "_cuda_emptyCache": lambda: None,
        "_host_emptyCache": lambda: None,
        "_cuda_memoryStats": lambda index: {"allocated_bytes": {"all": {"current": 0, "peak": 2**20}}},
        "_cuda_resetPeakMemoryStats": lambda index: None,
        "_cuda_resetAccumulatedMemoryStats": lambda index: None,
        "_cuda_getArchFlags": lambda: "sm_90",
        "_cuda_get_sync_debug_mode": lambda: 0,
        "_cuda_set_sync_debug_mode": lambda mode: None,
    }
    for name, answer in answers.items():
        setattr(torch._C, name, answer)
    _become(torch._C._CudaStreamBase, _Stream)
    _become(torch._C._CudaEventBase, _Event)
    _become(torch._C._CUDAGraph, _Graph)
    torch.cuda.graphs._cuda_isCurrentStreamCapturing = answers["_cuda_isCurrentStreamCapturing"]
    torch.cuda.graphs._graph_pool_handle = lambda: (0, 1)
    torch.cuda._exchange_device, torch.cuda._maybe_exchange_device = (lambda device: 0), (lambda device: 0)
    torch._C._cuda_CUDAAllocator_AllocatorState = object
    torch.cuda._get_device_properties = lambda index: properties
    torch._C._has_cuda = torch.cuda._initialized = True
    torch.cuda.default_generators = (torch.Generator("cuda"),)
    activities = torch.autograd.profiler._supported_activities
    torch.autograd.profiler._supported_activities = lambda: activities() | {torch.profiler.ProfilerActivity.CUDA}
    # torch.compile traces, and what it traced runs as it is; that it can is what code asks triton's presence for
    torch.compile = functools.partial(torch.compile, backend="eager")
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: find("json" if name == "triton" else name, *rest)
    assert torch.cuda.is_available() and torch.empty(1, device="cuda").is_cuda


def environment(library: Path, *more: Path) -> dict[str, str]:
    """Of a process in which, and in whose children, there is such a device; `more`: folders that it imports from."""
    path = [HERE / "preload", *more, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"CUDA_STAND_IN": str(library), "PYTHONPATH": os.pathsep.join(map(str, path))}

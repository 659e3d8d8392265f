"""Reading a torch file that holds other programs' objects, without running anything in it.

A pickle is a program for a small stack machine. It is dangerous because Python's machine lets it import and call anything.
The machine in this file imports nothing and calls nothing. It builds tensors and plain containers; every other object becomes
an `Inert`, which only marks its place. This is safer than a subclass of pickle.Unpickler, which builds, hashes and mutates
objects in C before Python code can refuse.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flm.checkpoints.torch_archive import TorchArchive

MAX_OPERATIONS = 10_000_000  # a checkpoint with a tokenizer in it takes about one million
_MAX_DIMENSIONS, _MAX_BITS, _MAX_KEY_PARTS = 16, 1024, 8

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# opcodes whose argument, decoded by pickletools, is the value itself
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SCALARS = (str, int, float, bool, bytes, type(None))


class Inert:
    """Stands for an object of a class that is not read.

    Attributes:
        state: the attributes that the file gives the object, in plain values, tensors and Inerts; None: none.
    """

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None


@dataclass(frozen=True)
class _Name:
    """The name of a class or function in the file. It is never imported."""

    text: str


@dataclass(frozen=True)
class _Storage:
    content: torch.UntypedStorage
    dtype: torch.dtype
    count: int


def read(path: str | Path, noted: list[str] | None = None) -> Any:
    """The content of a torch file: dicts, lists, tuples, scalars and CPU tensors, with an Inert for everything else.

    An entry of a dict whose key is neither a scalar nor a short tuple of scalars is left out.
    Tensors stay on disk until they are touched.

    Args:
        noted: the names of the first few objects that were not read are appended to it.

    Raises:
        ValueError: the file is missing, damaged, not a torch zip file, or not as torch.save writes it. Names the file.
    """
    archive = TorchArchive(path)
    machine = _Machine(archive)
    try:
        content = machine.run()
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError, EOFError) as error:
        line = str(error).partition("\n")[0][:200]
        if line.startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: refused, its pickle is damaged or hostile ({type(error).__name__}: {line})") from error
    if noted is not None:
        noted += machine.noted
    return content


class _Machine:
    """Runs the pickle of an archive. `stack` is the part above the last mark, `below` the parts under earlier ones."""

    def __init__(self, archive: TorchArchive):
        self.archive = archive
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.noted: list[str] = []

    def run(self) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.archive.pickle)):
            if count > MAX_OPERATIONS:
                raise ValueError(f"more than {MAX_OPERATIONS} operations")
            name = opcode.name
            if name in _VALUES:
                if type(argument) is int and argument.bit_length() > _MAX_BITS:
                    raise ValueError("an integer without end")
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self.stack.append(self.memo[argument])
            elif name == "STOP":
                break
            elif name in _OPERATIONS:
                _OPERATIONS[name](self, argument)
            else:  # extension registry, out-of-band buffers, textual persistent ids: torch writes none of them
                raise ValueError(f"operation {name}")
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def items(self) -> list[Any]:
        """Takes everything above the last mark, and the mark, off the stack."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.items()

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def inert(self, name: str) -> Inert:
        if len(self.noted) < 8:
            self.noted.append(name[:60])
        return Inert()

    def global_name(self, argument: str) -> None:
        name = argument.replace(" ", ".")
        if name not in _CALLS and _dtype(name) is None:
            self.inert(name)
        self.stack.append(_Name(name))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(module) is type(name) is str:
            self.global_name(f"{module} {name}")
        else:
            self.stack.append(self.inert("a name that is no text"))

    def take_tuple(self, length: int) -> None:
        found = tuple(self.stack[-length:])
        if len(found) < length:
            raise ValueError("too little on the stack")
        self.stack[-length:] = [found]

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Inert:
            raise ValueError("items for something that is no list")

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Inert:
            return
        if type(target) is not dict or len(values) % 2:
            raise ValueError("entries for something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if _is_key(key):
                target[key] = value

    def new_dict(self, values: list[Any]) -> None:
        self.stack.append({})
        self.set_items(values)

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        make = _CALLS.get(function.text) if type(function) is _Name else None
        self.stack.append(self.inert("a call") if make is None else make(arguments))

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Inert:
            target.state = state

    def new_object(self, taken: int) -> None:
        del self.stack[len(self.stack) - taken :]
        self.stack.append(self.inert("an object"))

    def new_object_from_mark(self, _: Any) -> None:
        self.items()
        self.stack.append(self.inert("an object"))

    def persistent(self, _: Any) -> None:
        kind, storage, key, _location, count = self.stack.pop()
        if kind != "storage" or type(storage) is not _Name or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a persistent id that is no tensor storage")
        dtype = _dtype(storage.text)
        if dtype is None:
            raise ValueError(f"tensor storage of type {storage.text[:60]}")
        self.stack.append(_Storage(self.archive.storage(key, count * dtype.itemsize), dtype, count))


def _dtype(storage: str) -> torch.dtype | None:
    """The element type of a storage class given by its full name; None for any other name."""
    return torch.uint8 if storage == "torch.storage.UntypedStorage" else _DTYPES.get(storage.removeprefix("torch."))


def _is_key(key: Any) -> bool:
    if type(key) is tuple:  # a deep nest of them would overflow the C stack when hashed
        return len(key) <= _MAX_KEY_PARTS and all(type(part) in _SCALARS for part in key)
    return type(key) in _SCALARS


def _tensor(arguments: Any) -> Tensor:
    """As torch._utils._rebuild_tensor_v2, with every number checked against the bytes of the storage."""
    storage, offset, size, stride = arguments[:4]
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise ValueError("a tensor without storage, size or stride")
    if any(type(value) is not int or value < 0 for value in (offset, *size, *stride)) or len(size) > _MAX_DIMENSIONS:
        raise ValueError("a tensor of impossible size")
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else -1
    if elements > storage.count or last >= storage.count:
        raise ValueError(f"a tensor of {elements} elements in a storage of {storage.count}")
    return torch.empty(0, dtype=storage.dtype).set_(storage.content, offset, size, stride)


def _parameter(arguments: Any) -> Tensor:
    if not isinstance(arguments[0], Tensor):
        raise ValueError("a parameter that is no tensor")
    return arguments[0]


def _empty_dict(arguments: Any) -> dict[Any, Any]:
    if arguments != ():
        raise ValueError("an ordered dict with arguments")  # pickle fills it later; repeated copies would exhaust the memory
    return {}


def _size(arguments: Any) -> tuple[int, ...]:
    (size,) = arguments
    if type(size) is not tuple:
        raise ValueError("a size that is no tuple")
    return size


# the functions that a pickle may call by name
_CALLS: dict[str, Callable[[Any], Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _empty_dict,
    "torch.Size": _size,
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.items() and None,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.take_tuple(1),
    "TUPLE2": lambda machine, _: machine.take_tuple(2),
    "TUPLE3": lambda machine, _: machine.take_tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.items())),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push(machine.inert("a set")),
    "LIST": lambda machine, _: machine.push(machine.items()),
    "FROZENSET": _Machine.new_object_from_mark,
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.items()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.items()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.new_dict(machine.items()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.items()),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "NEWOBJ": lambda machine, _: machine.new_object(2),
    "NEWOBJ_EX": lambda machine, _: machine.new_object(3),
    "INST": _Machine.new_object_from_mark,
    "OBJ": _Machine.new_object_from_mark,
    "BINPERSID": _Machine.persistent,
}

"""Makes the one script of a submission, which holds `flm.golf.submission` and all modules of this package that it needs.

The script needs torch, numpy, safetensors, tokenizers, pydantic and zstandard, but not this package. The modules are stored
compressed and without docstrings and comments.
"""

import ast
import base64
import importlib.util
import json
import lzma
from collections.abc import Iterable
from pathlib import Path

ENTRY = "flm.golf.submission"
ROOTS = (ENTRY, "flm.golf.wing", "flm.golf.packed")
MARK = 'PACKED = "'

_SCRIPT = '''"""Made by flm.golf.submission_script: modules by name, packed, and the call of one of them."""
import base64, importlib.abc, importlib.util, json, lzma, sys
{mark}{packed}"
SOURCES = json.loads(lzma.decompress(base64.b85decode(PACKED)))
class Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in SOURCES:
            return importlib.util.spec_from_loader(name, self, origin=__file__, is_package=SOURCES[name][0])
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.__file__ = __file__
        exec(compile(SOURCES[module.__name__][1], f"<{{module.__name__}}>", "exec"), module.__dict__)
sys.meta_path.insert(0, Modules())
if __name__ == "__main__":
    from {entry} import main
    sys.exit(main())
'''


def script(targets: Iterable[str] = ()) -> str:
    """The script's text.

    Args:
        targets: names "module.Class" of the classes in the packed model's description.
    """
    modules = closure([*ROOTS, *(target.rpartition(".")[0] for target in targets)])
    sources = {name: (path.name == "__init__.py", stripped(path.read_text(encoding="utf-8"))) for name, path in modules.items()}
    packed = lzma.compress(json.dumps(sources).encode(), preset=9 | lzma.PRESET_EXTREME)
    return _SCRIPT.format(mark=MARK, packed=base64.b85encode(packed).decode(), entry=ENTRY)


def closure(names: Iterable[str]) -> dict[str, Path]:
    """Files by name of the given modules of this package, of their parent packages, and of all that these import from it.

    Imports are followed to the end. Names outside this package are left out.
    """
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] != __name__.partition(".")[0]:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin)
        waiting += [name.rpartition(".")[0], *_imported(found[name])]
    return dict(sorted(found.items()))


def _imported(path: Path) -> list[str]:
    """Names of this package's modules that a file imports. `from a import b` gives a, and also a.b if that is a module."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if _is_module(name)]


def _is_module(name: str) -> bool:
    try:
        return name.startswith("flm") and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module and no package, so this is a name in that module
        return False


def stripped(source: str) -> str:
    """Python source without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
            continue
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = body[1:] or [ast.Pass()]
    return ast.unparse(tree)

"""Dependencies point one way, and heavy libraries are imported where they are used."""

import ast
from pathlib import Path

import flm

ROOT = Path(flm.__file__).parent
# Each layer may import those before it (and itself).
LAYERS = [
    {"ranges", "annotations", "schema", "handed_in"},
    {"atomic", "device", "draws", "outputs", "posterior", "registry", "vocabulary_losses", "paths"},
    {"models"},
    {"algos", "samplers"},
    {"data"},
    {"measures"},
    {"results"},
    {"likelihood"},
    {"judges"},
    {"checkpoints"},
    {"language_model", "text_commands", "config_files"},
    {"training"},
    {"tasks", "__main__"},
    {path.parent.name for path in ROOT.glob("*/wing.py")},
]
WINGS = LAYERS[-1]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ONLY_IN = {
    "lightning": {"training", "tasks", "data/module.py", "qwen/annealing.py", "qwen/callbacks.py"},
    "hydra": {"tasks", *WINGS},
    "omegaconf": {"tasks", *WINGS},
}
# Copied into exported folders for transformers to run there; nothing here imports them at the top but the API made of them.
SHIPPED = {
    "export/modeling_flm.py",
    "qwen/configuration_flow_qwen3.py",
    "qwen/modeling_flow_qwen3.py",
}
NEVER_AT_TOP = {"transformers", "datasets", "wandb", "matplotlib", "flash_attn", "mauve", "sacrebleu", "sentencepiece"}


def imports(path):
    """(module, is at top level) of every import in a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            yield name, node in tree.body


def test_layers_and_heavy_libraries():
    wrong = []
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        place = relative.parts[0].removesuffix(".py")
        if place == "__init__" or str(relative) in SHIPPED:
            continue
        assert place in LEVEL, f"{relative}: a new room needs its place in LAYERS"
        for name, at_top in imports(path):
            root, *rest = name.split(".")
            if root == "flm" and rest and LEVEL[rest[0]] > LEVEL[place]:
                wrong.append(f"{relative} imports {name}, which stands above it")
            allowed = ONLY_IN.get(root)
            if allowed is not None and place not in allowed and str(relative) not in allowed:
                wrong.append(f"{relative} imports {root}")
            if root in NEVER_AT_TOP and at_top:
                wrong.append(f"{relative} imports {root} at the top")
    assert not wrong, "\n".join(wrong)


def test_the_core_knows_no_wing_and_no_wing_another():
    """Not by an import, and not by a name in a text that a program could import: that is the registry's to say."""
    table = ROOT / "checkpoints" / "moved.py"  # of paths in old files
    wrong = []
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT).parts[0]
        others = WINGS - {place}
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            names = names if path != table and all(name.replace(".", "").isidentifier() for name in names) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            wrong += [
                f"{path.relative_to(ROOT)}: {name}" for name in names if name.startswith(tuple(f"flm.{o}." for o in others))
            ]
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    """No file imports itself by way of others. Imports inside functions count: they only hide a circle."""
    paths = {path: ".".join(("flm", *path.relative_to(ROOT).with_suffix("").parts)) for path in ROOT.rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for path, name in paths.items()}
    left = {name: imported(path) & files.keys() for name, path in files.items() if path != ROOT / "__init__.py"}
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    # what is left is on a circle or imports one that is: take off what nothing left imports, again and again
    while unused := set(left) - set().union(*left.values()):
        for name in unused:
            del left[name]
    assert not left, f"files that import each other, or stand between such: {', '.join(sorted(left))}"


def imported(path):
    """Modules that a file imports, and all names it takes out of packages, which may be modules too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_algorithms_do_not_know_each_other_by_name():
    """No file decides what to do by the name of an algorithm."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and "algo.name" in ast.unparse(node):
                raise AssertionError(f"{path.name}: {ast.unparse(node)}")


def test_test_files_have_names_of_their_own():
    """pytest imports them by base name: two alike stop the whole suite."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py")]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})

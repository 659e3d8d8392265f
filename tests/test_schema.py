"""Values against annotations: one line, the key, what is allowed, the value."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf

from flm.annotations import Node, describe
from flm.ranges import DIFFERENT, CalledWith, Count, Index, OpenShare, Positive, Share, Text, one_of
from flm.schema import check, check_node, made, signature_of


@dataclass(frozen=True)
class Inner:
    width: Count
    seed: int = 1


class Outer:
    def __init__(
        self,
        rate: Positive = 1.0,
        steps: Count | None = None,
        kind: Literal["a", "b"] = "a",
        ids: Sequence[Index] = (),
        flag: bool = False,
        betas: tuple[Share, Share] = (0.9, 0.99),
        named: Mapping[str, float] | None = None,
        text: Text = "x",
        path: Text | Path | None = None,
        module: torch.nn.Module | None = None,
        inner: Annotated[Inner, CalledWith.of("seed")] | None = None,
        groups: Mapping[str, Inner] | None = None,
        even: Annotated[int, Ge(2), MultipleOf(2)] = 2,
        mixed: Literal["auto"] | Count = "auto",
        plain=3,
        wrong: float = "auto",  # type: ignore[assignment]
    ):
        self.given = dict(locals())


REFUSED = [
    ("rate", 0, "rate must be a number above 0, not 0"),
    ("rate", True, "rate must be a number above 0, not true"),
    ("rate", "3", "rate must be a number above 0, not '3'"),
    ("rate", math.nan, "not nan"),
    ("rate", math.inf, "not inf"),
    ("rate", None, "not null"),
    ("rate", Node("x.Y"), "not an object of x.Y"),
    ("steps", 2.0, "steps must be a whole number of at least 1, or null, not 2.0"),
    ("steps", 10**30, "steps must be"),
    ("steps", False, "steps must be"),
    ("kind", "c", "kind must be one of a, b, not c"),
    ("kind", 1, "kind must be"),
    ("ids", "12", "ids must be a list, each a whole number of at least 0, not '12'"),
    ("ids", [1, -1], "not [1, -1]"),
    ("ids", {"a": 1}, "ids must be a list"),
    ("ids", iter([1, 2]), "ids must be a list, each a whole number of at least 0, not <list_iterator"),
    ("betas", iter([0.9, 0.99]), "betas must be a list of 2"),
    ("flag", "no", "flag must be true or false, not no"),
    ("flag", 1, "flag must be true or false, not 1"),
    ("flag", None, "flag must be true or false, not null"),
    ("betas", [0.9], "betas must be a list of 2: a number in [0, 1]; a number in [0, 1], not [0.9]"),
    ("betas", [0.9, math.nan], "betas must be"),
    ("named", {"a": "b"}, "named.a must be a number, not b"),
    ("named", ["b"], "named must be a mapping {name: value}, each value a number, or null"),
    ("named", [1], "named must be a mapping"),
    ("text", "  ", "text must be text that is not empty, not '  '"),
    ("path", 3, "path must be text that is not empty, or null, not 3"),
    ("path", "", "path must be"),
    ("module", 7, "module must be an object"),
    ("module", {"a": 1}, "module must be an object"),
    ("inner", {"width": 0}, "inner.width must be a whole number of at least 1, not 0"),
    ("inner", {"width": 1, "seed": 2}, "inner.seed is set by the program: leave it out"),
    ("inner", {"widht": 1}, "inner.widht: Inner takes no widht; did you mean inner.width?; it takes width"),
    ("inner", {}, "inner.width is missing: it must be a whole number of at least 1"),
    ("inner", 3, "inner must be a mapping with width, seed"),
    ("groups", {"a": {"width": "x"}}, "groups.a.width must be"),
    ("even", 3, "even must be a whole number of at least 2, a multiple of 2, not 3"),
    ("mixed", "aut", "mixed must be auto, or a whole number of at least 1, not aut"),
    ("rates", 1.0, "rates: Outer takes no rates; did you mean rate?; it takes rate, steps"),
]
TAKEN = [
    ("rate", 1),
    ("rate", 1e-300),
    ("steps", None),
    ("ids", (1, 2)),
    ("ids", []),
    ("betas", [0, 1]),
    ("named", {"a": 1}),
    ("path", Path("x")),
    ("path", "x"),
    ("module", Node("x")),
    ("module", torch.nn.Linear(1, 1)),
]
TAKEN += [("inner", {"width": 1}), ("mixed", 4), ("plain", {"any": ["thing"]}), ("wrong", "auto")]
TAKEN += [("groups", {"a": {"width": 1, "seed": 2}})]


def name_of(value) -> str:
    """Without the address of an iterator, which each process of the suite has elsewhere."""
    return type(value).__name__ if hasattr(value, "__next__") else str(value)


@pytest.mark.parametrize("name, value, line", REFUSED, ids=name_of)
def test_refused(name, value, line):
    with pytest.raises(ValueError) as error:
        check(Outer, {name: value}, "")
    assert line in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^a.b."):
        check(Outer, {name: value}, "a.b")


@pytest.mark.parametrize("name, value", TAKEN, ids=str)
def test_taken(name, value):
    check(Outer, {name: value}, "")


def test_words():
    assert describe(Annotated[float, Gt(0), Le(1)]) == "a number in (0, 1]"
    assert describe(OpenShare | None) == "a number in (0, 1), or null"
    assert describe(Annotated[float, Lt(3)]) == "a number below 3"
    assert describe(Annotated[Sequence[Count], MinLen(1), DIFFERENT]) == (
        "a list that is not empty, each a whole number of at least 1, all different"
    )
    assert describe(Annotated[str, one_of({"x": 1, "y": 2})]) == "one of x, y"
    assert describe(Any) == "anything"


class Base:
    def __init__(self, size: Count, scale: float = 1.0):
        pass


def test_options_go_to_the_next_class_within_the_package_alone():
    from flm.training.optimizers import AdamW

    assert not signature_of(AdamW).is_open and "amsgrad" in signature_of(AdamW).parameters

    class Foreign(Base):
        def __init__(self, own: int = 1, **options: Any):
            super().__init__(options.pop("size"), **options)

    assert signature_of(Foreign).is_open
    check(Foreign, {"own": 2, "size": "as it likes", "more": 3}, "x")
    with pytest.raises(ValueError, match="x.own must be a whole number, not 2.5"):
        check(Foreign, {"own": 2.5}, "x")


def test_partials_functions_and_what_names_what_it_lacks():
    check(partial(Base, 3), {"scale": 2}, "x")
    with pytest.raises(ValueError, match="takes no size"):
        check(partial(Base, 3), {"size": 2}, "x")

    def function(a: "NowhereDefined", b: Count = 1):  # noqa: F821
        pass

    check(function, {"a": "what is not known is not enforced", "b": 1}, "x")
    check(dict, {"anything": 1}, "x")

    def called(f: Callable[..., int], untyped, *rest: int):
        pass

    with pytest.raises(ValueError, match="x.f must be an object"):
        check(called, {"f": 3, "untyped": 4}, "x")


def test_nodes_are_checked_inside_out_and_nothing_is_built():
    built = []

    class Part:
        def __init__(self, size: Count):
            built.append(size)

    class Whole:
        def __init__(self, part: Part, parts: Sequence[Part] = ()):
            built.append(part)

    def resolve(target, key):
        return {"Part": Part, "Whole": Whole}[target]

    check_node({"_target_": "Whole", "part": {"_target_": "Part", "size": 1}}, "w", resolve)
    for node, line in [
        ({"_target_": "Whole", "part": {"_target_": "Part", "size": 0}}, "w.part.size must be"),
        (
            {"_target_": "Whole", "part": {"_target_": "Part", "size": 1}, "parts": [{"_target_": "Part"}]},
            r"w.parts\[0\].size is m",
        ),
        ({"_target_": "Whole"}, "w.part is missing"),
        ({"_target_": "Whole", "part": 3}, "w.part must be an object"),
        ({"_target_": "Whole", "_args_": [1]}, "w._args_: not understood"),
        ({"_target_": "Whole", "_partial_": "yes"}, "w._partial_ must be true or false"),
    ]:
        with pytest.raises(ValueError, match=line):
            check_node(node, "w", resolve)
    check_node({"_target_": "Whole", "_partial_": True}, "w", resolve)
    assert not built


def test_options_become_dataclasses():
    @dataclass(frozen=True)
    class Options:
        inner: Inner
        rate: Positive = 2.0

    assert made(Options, {"inner": {"width": 3}}, "o") == Options(Inner(3))
    with pytest.raises(ValueError, match="o.inner.width"):
        made(Options, {"inner": {"width": 0}}, "o")

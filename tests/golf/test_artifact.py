"""A model packed into a file: what comes back, the search for a size that fits, and files that are not whole."""

import hashlib
import json
import math
import time
import zlib

import pytest
import safetensors.torch
import torch

from flm.algos.ar import AR
from flm.atomic import write_bytes
from flm.checkpoints.description import Description
from flm.checkpoints.load import load_algorithm
from flm.golf import entropy_coder, packing
from flm.golf import packed as artifact
from flm.golf.packed import ZLIB, PackedFile, read
from flm.golf.packing import pack
from flm.golf.quantise import TABLE_PERCENTILE, Plan, quantise
from flm.models.dit import DiT

V, L, WIDTH, SMALL = 200, 16, 64, 2000
MODEL = {"_target_": "flm.models.dit.DiT", "length": L, "hidden_size": WIDTH, "num_blocks": 3, "num_heads": 2, "mlp_ratio": 4}
CONFIG = {"algo": {"_target_": "flm.algos.ar.AR"}, "model": MODEL}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {key: value for key, value in MODEL.items() if key != "_target_"}
    built = AR(lambda **options: DiT(**sizes, **options), V, L)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return built.eval()


@pytest.fixture(scope="module")
def packed(model):
    return pack(model, about(), None, small=SMALL)


def about(**changes):
    return Description(**({"config": CONFIG, "tokenizer": None, "vocab_size": V, "length": L, "step": 7} | changes))


def rounded(model, fewer=()):
    """Every parameter as the plan says, written out."""
    weights = dict(model.named_parameters())
    found = {}
    for name, bits in Plan.of(weights, fewer, SMALL).bits.items():
        weight = weights[name].detach()
        percentile = TABLE_PERCENTILE if bits == 8 else 1.0
        found[name] = weight.half().float() if bits == 16 else quantise(weight, bits, percentile).weight()
    return found


def test_the_file_holds_the_rounded_model_and_gives_its_very_logits(model, packed, tmp_path):
    path = tmp_path / "model.flmpack"
    write_bytes(path, packed.content)
    loaded, file = load_algorithm(path)
    expected = rounded(model)
    assert {6, 8, 16} == set(Plan.of(dict(model.named_parameters()), small=SMALL).bits.values())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert not torch.equal(parameter, dict(model.named_parameters())[name]) or not parameter.any() or parameter.ndim < 2
    tokens = torch.randint(V, (2, L), generator=torch.Generator().manual_seed(1))
    twin = AR(lambda **options: DiT(**{k: v for k, v in MODEL.items() if k != "_target_"}, **options), V, L).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(expected[name])
    assert torch.equal(loaded.nll(tokens), twin.nll(tokens))
    assert not torch.equal(loaded.nll(tokens), model.nll(tokens))
    assert (file.step, file.config, file.tokenizer) == (7, CONFIG, None)
    assert len(path.read_bytes()) < sum(p.numel() for p in model.parameters())  # under a byte each


class Tied(torch.nn.Module):
    """Two names for one matrix, and constants that rounding would spoil."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(300, 300, generator=torch.Generator().manual_seed(0)))
        self.head = torch.nn.Linear(300, 300, bias=False)
        self.head.weight = self.table
        self.register_buffer("constants", torch.linspace(0, 1, 70_000, dtype=torch.float64))
        self.register_buffer("counts", torch.arange(3))


def test_tied_weights_are_kept_once_and_buffers_to_the_bit(tmp_path):
    model, path = Tied(), tmp_path / "tied.flmpack"
    packed = pack(model, about(), None, small=SMALL)
    write_bytes(path, packed.content)
    _, state = read(path)
    assert set(packed.plan.bits) == {"table"}
    assert set(state) == set(model.state_dict())
    assert torch.equal(state["table"], state["head.weight"])
    assert torch.equal(state["table"], quantise(model.table, 8, TABLE_PERCENTILE).weight())
    assert torch.equal(state["constants"], model.constants) and state["constants"].dtype == torch.float64
    assert torch.equal(state["counts"], model.counts)


def test_blocks_get_fewer_bits_from_the_middle_until_the_file_fits(model, packed, tmp_path):
    whole = len(packed.content)
    one = pack(model, about(), whole - 1, small=SMALL)
    assert one.plan.fewer == (1,) and [plan.fewer for plan in one.tried] == [(), (1,)]
    assert len(one.content) <= one.tried[one.plan] < whole <= next(iter(one.tried.values()))
    limit = int(0.97 * len(one.content))
    two = pack(model, about(), limit, small=SMALL)
    assert two.plan.fewer == (1, 2) and len(two.content) <= limit < list(two.tried.values())[1]
    path = tmp_path / "model.flmpack"
    write_bytes(path, two.content)
    loaded, _ = load_algorithm(path)
    for name, weight in rounded(model, fewer=(1, 2)).items():
        assert torch.equal(dict(loaded.named_parameters())[name], weight), name
    with pytest.raises(ValueError, match=r"with all blocks in 5 bits, and .* are left"):
        pack(model, about(), whole // 2, small=SMALL)


@pytest.mark.parametrize("law", ["gaussian", "heavy-tailed"])
def test_steps_are_the_finest_that_fit(law, tmp_path):
    """At the bytes of 5 bits the error is that of 5 bits, and less where a row's largest weight costs the others."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList(torch.nn.Linear(512, 512, bias=False) for _ in range(2))})
    for block in model["blocks"]:
        weight = torch.randn(512, 512, generator=generator) * 0.05
        if law == "heavy-tailed":  # Student's t with 4 degrees of freedom
            weight /= (torch.randn(4, 512, 512, generator=generator).square().mean(0)).sqrt()
        block.weight.data = weight

    def error(packed):
        write_bytes(tmp_path / "model.flmpack", packed.content)
        _, state = read(tmp_path / "model.flmpack")
        differences = [
            (state[name] - weight).square().sum() / weight.square().sum() for name, weight in model.state_dict().items()
        ]
        return (sum(differences) / len(differences)).sqrt().item()

    bits = pack(model, about(), None, small=0)
    fewest = pack(model, about(), int(0.85 * len(bits.content)), small=0)
    assert fewest.plan.fewer == (1, 0)
    limit = len(fewest.content)
    steps = pack(model, about(), limit, small=0, rounding="step")
    assert 0.995 * limit < steps.tried[steps.plan] <= limit and 0.97 * limit < len(steps.content) <= limit
    assert error(steps) == pytest.approx(steps.plan.step / 12**0.5, rel=0.02)
    assert error(steps) < (1.01 if law == "gaussian" else 0.85) * error(fewest)
    fine = pack(model, about(), None, small=0, rounding="step")
    assert fine.plan.step == packing.FINE_STEP and error(fine) < error(steps)
    with pytest.raises(ValueError, match=r"at the coarsest step, and .* are left"):
        pack(model, about(), 50_000, small=0, rounding="step")


def test_the_plan_of_the_embedding_flow(model, tmp_path):
    packed = pack(model, about(), None, small=SMALL, rounding="int8")
    assert set(packed.plan.bits.values()) == {8, 16} and packed.content[8] == ZLIB
    write_bytes(tmp_path / "model.flmpack", packed.content)
    _, state = read(tmp_path / "model.flmpack")
    for name, weight in model.named_parameters():
        found = weight.half().float() if packed.plan.bits[name] == 16 else quantise(weight, 8, TABLE_PERCENTILE).weight()
        assert torch.equal(state[name], found), name
    with pytest.raises(ValueError, match="in 8 bits, and 1,000 are left"):
        pack(model, about(), 1000, small=SMALL, rounding="int8")


def test_without_zstandard_zlib_serves(model, packed, tmp_path, monkeypatch):
    path, best = tmp_path / "model.flmpack", tmp_path / "best.flmpack"
    write_bytes(best, packed.content)
    for module in (artifact, packing):
        monkeypatch.setattr(module, "has_zstandard", lambda: False)
    write_bytes(path, pack(model, about(), None, small=SMALL).content)
    assert path.read_bytes()[8] == ZLIB
    _, state = read(path)
    with pytest.raises(ValueError, match="pip install zstandard"):
        read(best)
    monkeypatch.undo()
    _, other = read(best)
    assert all(torch.equal(state[name], other[name]) for name in other)


def with_content(raw, codec=ZLIB, length=None):
    compressed = zlib.compress(raw)
    digest = hashlib.sha256(compressed).digest()
    return artifact._HEADER.pack(artifact.MAGIC, codec, len(raw) if length is None else length, digest) + compressed


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda content: content[:20], "cut short"),
        (lambda content: content[:-5], "checksum does not match"),
        (lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:], "checksum does not match"),
        (lambda content: content[:7] + b"\x09" + content[8:], "artifact format 9"),
        (lambda content: with_content(b"", length=5), "0 bytes in place of 5"),
        (lambda content: with_content(b"no safetensors file at all"), "not that of one"),
        (lambda content: content[:8] + b"\x02" + content[9:], "does not decompress"),
    ],
)
def test_a_file_that_is_not_whole_is_one_clear_line(packed, tmp_path, damage, message):
    path = tmp_path / "model.flmpack"
    write_bytes(path, damage(packed.content))
    with pytest.raises(ValueError, match=message) as caught:
        load_algorithm(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_weights_of_another_model_are_told(model, tmp_path):
    path = tmp_path / "model.flmpack"
    other = json.loads(json.dumps(CONFIG))
    other["model"]["num_blocks"] = 2
    write_bytes(path, pack(model, about(config=other), None, small=SMALL).content)
    with pytest.raises(ValueError, match="weights do not fit"):
        load_algorithm(path)


def test_a_weight_that_cannot_be_rounded_is_named():
    model = Tied()
    with torch.no_grad():
        model.table[3, 4] = torch.nan
    with pytest.raises(ValueError, match="^table: holds weights"):
        pack(model, about(), None, small=SMALL)


def test_other_files_are_no_artifacts(tmp_path):
    (tmp_path / "a.txt").write_text("FLM")
    assert not PackedFile.matches(tmp_path / "a.txt") and not PackedFile.matches(tmp_path / "none")


def described(text=None, tensors=(), **about):
    """The content of an artifact that says so of itself; `text` in place of all it says."""
    return safetensors.torch.save({"a": torch.zeros(4, 4), **dict(tensors)}, {"flm": text or json.dumps(SAID | about)})


SAID = {"config": {}, "tokenizer": None, "vocab_size": 3, "length": 4, "step": 1, "format_version": 1, "package_version": "1"}
SAID |= {"parameters": [], "aliases": {}}


def coded(shapes, replacement=""):
    """One whose codes, all alike, have such names and shapes; the replacement stands for @ there."""
    words = torch.zeros(
        2 * entropy_coder._lanes(sum(math.prod(shape) for _, shape in shapes if shape != "@")), dtype=torch.int16
    )
    words[0::2] = 1  # what is left to read of codes of probability 1
    frequencies = torch.zeros(len(shapes), 256, dtype=torch.int16)
    frequencies[:, 0] = entropy_coder.TOTAL
    text = json.dumps(SAID | {"coded": shapes}).replace('"@"', replacement)
    return described(text, {artifact._WORDS: words, artifact._FREQUENCIES: frequencies})


LYING = {
    "a list of millions in the description": lambda: described('{"config":[' + "[]," * (20 << 20) + "[]]}"),
    "many weights of one code": lambda: coded([["big", [30_000_000]], *([str(i), [1]] for i in range(50_000))]),
    "many weights of no code": lambda: coded([[str(i), [0]] for i in range(60_000)]),
    "a weight named a million times": lambda: described(
        tensors={"b": torch.zeros(1 << 25, dtype=torch.int8)}, parameters=["b"] * 100_000 + [7]
    ),
    **{
        f"a size of {size:.9}": lambda size=size: coded([["b", "@"]], f"[{size}]")
        for size in ("1e999", "NaN", '"x"', "1" * 5000)
    },
    "a third part of a shape": lambda: coded([["b", "@"]], "[1], 1"),
    "words of half a number": lambda: described(
        tensors={artifact._WORDS: torch.zeros(3, dtype=torch.int8), artifact._FREQUENCIES: torch.zeros(1, 256)},
        coded=[["b", [1]]],
    ),
}


@pytest.mark.parametrize("kind", LYING)
def test_what_an_artifact_says_of_itself_costs_what_it_holds(kind, tmp_path):
    """Some 18 to 29 s and a gigabyte, or an error that did not name the file."""
    path = tmp_path / "model.flmpack"
    write_bytes(path, with_content(LYING[kind]()))
    start = time.process_time()
    with pytest.raises(ValueError, match="damaged artifact: its content is not that of one") as caught:
        read(path)
    assert time.process_time() - start < 6
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)

import hashlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import Linear

from flm.algos.algorithm import Algorithm
from flm.checkpoints import files
from flm.checkpoints.build import build, build_algorithm
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import check_vocabulary, load_algorithm, read_checkpoint

HERE = [__name__]


class Net(nn.Module):
    def __init__(self, vocab_size: int, length: int, width: int = 3):
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)
        self.out = nn.Linear(width, vocab_size, bias=False)
        self.out.weight = self.table.weight  # tied: one parameter, two names in the state dict
        self.norm, self.last = nn.LayerNorm(width), Linear(1, 1)
        self.register_buffer("seen", torch.zeros(2))


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor


class Simple(Algorithm):
    def __init__(self, backbone, vocab_size, length, scale=None, layers=None):
        super().__init__(vocab_size, length)
        self.backbone, self.scale, self.layers = backbone(vocab_size=vocab_size), scale, layers


class NotAlgorithm(nn.Module):
    def __init__(self, backbone, vocab_size, length):
        super().__init__()


def config(**algo):
    return {
        "algo": {"_target_": f"{__name__}.Simple", **algo},
        "model": {"_target_": f"{__name__}.Net", "length": 5, "width": 3},
    }


def write(path, average=True, **changes):
    torch.manual_seed(0)
    model = build_algorithm(config(), 7, HERE)
    model.backbone.seen.fill_(4.0)
    averaged = {k: torch.randn_like(v) for k, v in model.named_parameters()} if average else None
    description = Description(config(), {"kind": "chars", "symbols": "abc"}, 7, 5, 12, averaged, 12).to_dict()
    state = {f"algorithm.{k}": v for k, v in model.state_dict().items()}
    content = {"state_dict": state | {"other.x": torch.zeros(1)}, KEY: description, "global_step": 12}
    files.save(content | changes, path)
    return model, averaged


def test_load_rebuilds_the_model_with_either_weights(tmp_path):
    model, averaged = write(tmp_path / "x.ckpt")
    online, file = load_algorithm(tmp_path / "x.ckpt", use_average=False, trusted_modules=HERE)
    assert type(online) is Simple and (online.vocab_size, online.length) == (7, 5) and not online.training
    for key, value in model.state_dict().items():
        assert torch.equal(online.state_dict()[key], value)
    loaded, _ = load_algorithm(tmp_path / "x.ckpt", trusted_modules=HERE)
    for key, value in averaged.items():
        assert torch.equal(loaded.get_parameter(key), value)
    # the second name of a tied weight does not bring the trained value back; buffers keep theirs
    assert loaded.backbone.out.weight is loaded.backbone.table.weight
    assert torch.equal(loaded.backbone.seen, torch.full((2,), 4.0))
    assert file.step == 12 and file.config == config() and file.weights == "last step"
    assert file.sha256 == hashlib.sha256((tmp_path / "x.ckpt").read_bytes()).hexdigest()


def test_no_average_to_use(tmp_path):
    write(tmp_path / "x.ckpt", average=False)
    with pytest.raises(ValueError, match="x.ckpt: holds no average.*eval.disable_ema=true"):
        load_algorithm(tmp_path / "x.ckpt", trusted_modules=HERE)


def test_without_trust_a_foreign_class_is_refused(tmp_path):
    write(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x.ckpt: algo._target_=.* refused.*eval.trusted_modules"):
        load_algorithm(tmp_path / "x.ckpt")


def test_misfits_are_named_key_by_key(tmp_path):
    model, _ = write(tmp_path / "x.ckpt")
    state = {f"algorithm.{k}": v for k, v in model.state_dict().items()}
    del state["algorithm.backbone.norm.bias"]
    state["algorithm.backbone.more"] = torch.zeros(1)
    state["algorithm.backbone.norm.weight"] = torch.zeros(4)
    write(tmp_path / "x.ckpt", state_dict=state)
    with pytest.raises(ValueError) as caught:
        load_algorithm(tmp_path / "x.ckpt", trusted_modules=HERE)
    assert str(caught.value) == (
        f"{tmp_path}/x.ckpt: the weights do not fit the model: backbone.norm.bias missing; backbone.more unexpected; "
        "backbone.norm.weight has shape (4,), the model needs (3,)"
    )
    write(tmp_path / "x.ckpt", state_dict={})
    with pytest.raises(ValueError, match="missing; and 3 more$"):
        load_algorithm(tmp_path / "x.ckpt", trusted_modules=HERE)


def test_a_misfit_average_is_named(tmp_path):
    write(tmp_path / "x.ckpt")
    content = files.load(tmp_path / "x.ckpt")
    content[KEY]["average"]["backbone.norm.bias"] = torch.zeros(9)
    content[KEY]["average"]["ghost"] = torch.zeros(1)
    files.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="average: .*ghost unexpected; backbone.norm.bias has shape"):
        load_algorithm(tmp_path / "x.ckpt", trusted_modules=HERE)


def test_other_versions_and_files_without_a_description(tmp_path):
    write(tmp_path / "x.ckpt", **{KEY: {"format_version": 99, "package_version": "9.1"}})
    with pytest.raises(ValueError, match="x.ckpt: checkpoint format 99, written by version '9.1'"):
        read_checkpoint(tmp_path / "x.ckpt")
    write(tmp_path / "x.ckpt", **{KEY: None})
    with pytest.raises(ValueError, match="x.ckpt: not a checkpoint of this project"):
        read_checkpoint(tmp_path / "x.ckpt")
    write(tmp_path / "x.ckpt", state_dict="no")
    with pytest.raises(ValueError, match="x.ckpt: damaged checkpoint"):
        read_checkpoint(tmp_path / "x.ckpt")
    description = Description(config(), None, 7, 5, 1).to_dict()
    write(tmp_path / "x.ckpt", **{KEY: {k: v for k, v in description.items() if k != "step"}})
    with pytest.raises(ValueError, match=r"x.ckpt: damaged description: \['step'\]"):
        read_checkpoint(tmp_path / "x.ckpt")
    write(tmp_path / "x.ckpt", **{KEY: description | {"vocab_size": "7"}})
    with pytest.raises(ValueError, match="vocab_size is not of type int"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_another_vocabulary(tmp_path):
    class Tokenizer:
        def __init__(self, symbols):
            self.symbols = symbols

        def to_dict(self):
            return {"kind": "chars", "symbols": self.symbols}

    write(tmp_path / "x.ckpt")
    checkpoint = read_checkpoint(tmp_path / "x.ckpt")
    check_vocabulary(checkpoint, Tokenizer("abc"))
    with pytest.raises(ValueError, match="x.ckpt: a checkpoint of another vocabulary: .* differs .* in symbols"):
        check_vocabulary(checkpoint, Tokenizer("abd"))


@pytest.mark.parametrize("bad", [Path("x"), torch.zeros(1), {1.5: 2}, [object()]])
def test_descriptions_take_plain_values_only(bad):
    with pytest.raises(ValueError, match=r"config.a.b"):
        Description({"a": {"b": bad}}, None, 7, 5, 1)


def test_build_nests_and_keeps_partials():
    target = f"{__name__}.Scale"
    node = config(scale={"_target_": target, "factor": 2.0}, layers=[{"_target_": target, "factor": 3}])
    built = build_algorithm(node, 7, HERE)
    assert isinstance(built.scale, Scale) and built.scale.factor == 2.0 and built.layers[0].factor == 3
    made = build({"_target_": f"{__name__}.Scale", "_partial_": True}, HERE)
    assert isinstance(made, partial) and made(factor=4.0).factor == 4.0
    scale = Scale(5.0)
    assert build_algorithm(config(), 7, HERE, scale=scale).scale is scale


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.nn.Linear",
        "flm.atomic.os.system",
        "flm.atomic.os",
        "flm.checkpoints.files.load",
        "flm.algos.algorithm.nn.Linear",
        "flm.algos.algorithm.Tensor",
        "flm.algos.algorithm.Batch",
        "flm.checkpoints.load.Path",
        "flm..os.system",
        "flm.",
        "flm",
        "flmx.Y",
        "",
        "flm/../os.system",
        None,
        3,
        ["flm"],
    ],
)
def test_targets_that_are_not_our_models_are_refused(target):
    with pytest.raises(ValueError, match="refused"):
        build({"_target_": target, "command": "true"})


def test_foreign_modules_are_not_even_imported(tmp_path, monkeypatch):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom torch.nn import Module\nclass X(Module): pass\n"
    for name in ("hostile_module", "flm_hostile"):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("hostile_module.X", "flm.hostile_module.X", "flm_hostile.X"):
        with pytest.raises(ValueError, match="refused"):
            build({"_target_": target})
    with pytest.raises(ValueError, match="refused"):
        build_algorithm(config(scale={"_target_": "hostile_module.X"}), 7, HERE)
    assert not {"hostile_module", "flm_hostile"} & set(sys.modules) and not (tmp_path / "ran").exists()


def test_a_trusted_module_vouches_for_its_own_classes_only():
    # Linear is in this module's namespace, but not defined here
    with pytest.raises(ValueError, match="refused"):
        build({"_target_": f"{__name__}.Linear", "in_features": 1, "out_features": 1}, HERE)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="^fctor: Scale takes no fctor; did you mean factor\\?; it takes factor$"):
        build({"_target_": f"{__name__}.Scale", "factor": 2, "fctor": 1}, HERE)
    with pytest.raises(ValueError, match="factor is missing"):
        build({"_target_": f"{__name__}.Scale"}, HERE)
    with pytest.raises(ValueError, match="_args_"):
        build({"_target_": f"{__name__}.Scale", "_args_": [1]}, HERE)
    with pytest.raises(ValueError, match="not an Algorithm"):
        build_algorithm({**config(), "algo": {"_target_": f"{__name__}.NotAlgorithm"}}, 7, HERE)
    with pytest.raises(ValueError, match="no node 'model'"):
        build_algorithm({"algo": config()["algo"]}, 7, HERE)
    with pytest.raises(ValueError, match="model.length"):
        build_algorithm({**config(), "model": {"_target_": f"{__name__}.Net"}}, 7, HERE)


def test_what_the_package_builds_can_be_loaded(tmp_path):
    node = {
        "algo": {"_target_": "flm.algos.flm.FLM"},
        "model": {"_target_": "flm.models.dit.DiT", "length": 4, "hidden_size": 8, "num_blocks": 1, "num_heads": 2},
    }
    model = build_algorithm(node, 11)
    state = {f"algorithm.{k}": torch.randn_like(v.float()).to(v.dtype) for k, v in model.state_dict().items()}
    files.save({"state_dict": state, KEY: Description(node, None, 11, 4, 1).to_dict()}, tmp_path / "x.ckpt")
    loaded, _ = load_algorithm(tmp_path / "x.ckpt", use_average=False)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[f"algorithm.{key}"])

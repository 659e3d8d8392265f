"""A teacher that is missing or does not fit ends the command before any data are read."""

import pytest
from every_algorithm import NAMES, TEACHERS, build, composed
from running import command

from flm.checkpoints import files
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.load import PREFIX
from flm.data.module import TextDataModule

FITS = {"duo_distill": {"duo", "duo_distill"}, "kl_flow_map": {"kl_flow"}, "kl_simplex_dmd": {"kl_flow"}}
SIZES = ["model=nano", "model.hidden_size=16", "model.num_blocks=2", "model.num_heads=2", "model.length=8", "model.cond_dim=8"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A file of each algorithm, of a vocabulary of 29 tokens and without its tokenizer."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name in NAMES:
        model = build(name).float()
        described = Description(composed(name), None, model.vocab_size, model.length, 7, None, 0)
        state = {f"{PREFIX}{key}": value for key, value in model.state_dict().items()}
        found[name] = folder / f"{name}.ckpt"
        files.save({"state_dict": state, "global_step": 7, KEY: described.to_dict()}, found[name])
    return found


def error_of(monkeypatch, capfd, tmp_path, *options):
    (tmp_path / "text.txt").write_text("the cat sees the sea. " * 50)
    data = [
        "data=text",
        f"data.path={tmp_path}/text.txt",
        f"data.valid_path={tmp_path}/text.txt",
        "tokenizer=characters",
        "debug=tiny",
        *SIZES,
        "logger=none",
    ]
    assert command(monkeypatch, *data, *options, f"hydra.run.dir={tmp_path}/run") == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def unread(monkeypatch):
    def prepare(self):
        raise AssertionError("the data are read")

    monkeypatch.setattr(TextDataModule, "prepare", prepare)


@pytest.mark.parametrize("student", TEACHERS)
def test_any_file_as_teacher_is_judged_before_data_are_read(student, checkpoints, unread, monkeypatch, capfd, tmp_path):
    (*others, key) = TEACHERS[student]
    beside = [f"algo={student}", *(f"algo.{other}_path=null" for other in others)]
    line = error_of(monkeypatch, capfd, tmp_path, *beside, f"algo.{key}_path={tmp_path}/none.ckpt")
    assert f"algo.{key}_path" in line and "none.ckpt" in line
    # all pairs of algorithms: tests/algos/test_teachers.py
    other = next(name for name in NAMES if name not in FITS.get(student, {"flm", "flm_distill"}))
    line = error_of(monkeypatch, capfd, tmp_path, *beside, f"algo.{key}_path={checkpoints[other]}")
    assert f"algo.{key}_path: needs a checkpoint of algo=" in line
    assert not (tmp_path / "run" / "run.json").exists()


def test_one_that_fits_has_to_be_of_the_datas_tokenizer(checkpoints, monkeypatch, capfd, tmp_path):
    line = error_of(monkeypatch, capfd, tmp_path, "algo=fmlm", f"algo.teacher_path={checkpoints['flm']}")
    assert "algo.teacher_path: a checkpoint of another vocabulary (29 tokens, the data's tokenizer has" in line


@pytest.mark.parametrize("student", [name for name in TEACHERS if name not in ("fmlm", "kl_flow_map")])
def test_one_that_is_needed_is_asked_for(student, unread, monkeypatch, capfd, tmp_path):
    none = [f"algo.{key}_path=null" for key in TEACHERS[student]]
    assert "_path is not set: name the checkpoint" in error_of(monkeypatch, capfd, tmp_path, f"algo={student}", *none)

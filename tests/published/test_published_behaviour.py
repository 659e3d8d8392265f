"""Published weights behave as published where their files do not say how: softcap, sampler, vocabulary, and where they lie."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fake_hub import FakeHub
from published_layouts import (
    L,
    V,
    average_of,
    config_of,
    flm_v1,
    fmlm_v2,
    lightning,
    random_weights,
    tokenizer_folder,
    two_stage,
)
from tasks.running import command

import flm
from flm.checkpoints.foreign import ImportChoices
from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.text_commands import run

VOCABULARIES = next((folder for up in Path(__file__).parents if (folder := up / "shared/data/gpt2").is_dir()), Path()).parent


def write(path: Path, content: dict) -> Path:
    torch.save(content, path)
    return path


def of_february(**more) -> dict:
    """As the code of 25 February to 7 April 2026 saves an FLM: no mark of the released files, Lightning of its time."""
    return lightning(random_weights(1), config_of("flm"), **more)


@pytest.mark.parametrize(
    "name, content",
    {
        "an older Lightning": of_february(),
        "no version": {key: value for key, value in of_february().items() if key != "pytorch-lightning_version"},
        "several averages, which only that code kept": of_february(ema_list=flm_v1()[0]["ema_list"])
        | {"pytorch-lightning_version": "2.6.0"},
        "the first scheme of distillation": two_stage()[0],
    }.items(),
)
def test_a_file_that_may_be_of_the_weeks_without_a_softcap_is_asked_about(tmp_path, name, content):
    path = write(tmp_path / "x.ckpt", content)
    with pytest.raises(ValueError, match=r"^\S+x.ckpt: may be of FLM's code of .* eval.output_softcap to null") as caught:
        load_algorithm(path, choices=ImportChoices(tokenizer=False), use_average=None)
    assert "\n" not in str(caught.value)
    for said in (None, 30.0):
        file = read_checkpoint(path, ImportChoices(tokenizer=False, output_softcap=said))
        assert file.config["model"]["output_softcap"] == said


def test_released_files_and_later_code_are_known_to_have_one(tmp_path, caplog):
    later = of_february() | {"pytorch-lightning_version": "2.6.0"}
    private = lightning(random_weights(1), config_of("other", time_condition="alpha_t"))
    for name, content in {"a": later, "b": private, "c": flm_v1()[0], "d": fmlm_v2()[0]}.items():
        file = read_checkpoint(write(tmp_path / f"{name}.ckpt", content))
        assert file.config["model"]["output_softcap"] == 30.0, name
    assert caplog.text == ""
    file = read_checkpoint(write(tmp_path / "owt_flm.ckpt", of_february()))
    assert file.config["model"]["output_softcap"] == 30.0 and "taken by its name" in caplog.text


@pytest.mark.parametrize("rows, gamma", [(30522, 0.8), (50257, 1.0), (50258, 1.0), (V, None)])
def test_a_flow_map_is_sampled_as_its_published_numbers_were(tmp_path, rows, gamma):
    content = lightning(random_weights(4, vocab_size=rows, two_times=True), config_of("dos_denoiser"))
    algorithm, source = load_algorithm(write(tmp_path / "x.ckpt", content), use_average=None)
    if gamma is None:
        assert source.generation == {"steps": 64, "options": {}}
    else:
        assert source.generation == {"steps": 32, "options": {"gamma": gamma}}
        assert algorithm.sampler(**source.generation["options"]).gamma == gamma


def test_the_student_of_two_stages_jumps_deterministically(tmp_path):
    path = write(tmp_path / "x.ckpt", two_stage()[0])
    file = read_checkpoint(path, ImportChoices(tokenizer=False, output_softcap=None))
    assert file.generation == {"steps": 4, "options": {"gamma": 0.0}}


@pytest.mark.parametrize("name, files", {"gpt2": ("vocab.json", "merges.txt"), "bert": ("vocab.txt",)}.items())
def test_real_vocabularies_are_found_where_the_message_says(tmp_path, monkeypatch, capfd, name, files):
    """data.cache_dir/NAME with the bare files; before, only on the hub or under eval.tokenizer_name_or_path."""
    if not (VOCABULARIES / name).is_dir():
        pytest.skip("no copy of the vocabulary here")
    hub_name, rows = {"gpt2": ("gpt2", 50258), "bert": ("bert-base-uncased", 30522)}[name]
    place = tmp_path / "data" / hub_name
    place.mkdir(parents=True)
    for file in files:
        (place / file).symlink_to(VOCABULARIES / name / file)
    content = lightning(random_weights(4, vocab_size=rows, two_times=True), config_of("dos_denoiser"))
    source = write(tmp_path / "x.ckpt", content)
    options = ["mode=import", f"eval.checkpoint_path={source}", f"data.cache_dir={tmp_path}/data"]
    assert command(monkeypatch, *options, f"hydra.run.dir={tmp_path}/run") == 0
    capfd.readouterr()
    lm = flm.load(tmp_path / "run", "cpu", use_average=None)
    assert lm.tokenizer.vocab_size == rows and (lm.steps, lm.options["gamma"]) == (32, 1.0 if name == "gpt2" else 0.8)
    words = "the cat sees a dog"
    assert lm.tokenizer.decode(lm.tokenizer.encode(words)) == words
    again = flm.load(source, "cpu", use_average=None, tokenizer_dir=str(tmp_path / "data"))
    assert again.tokenizer.to_dict() == lm.tokenizer.to_dict()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A repository of the four released names."""
    files = dict.fromkeys(("lm1b_flm.ckpt", "owt_flm.ckpt"), b"-")
    for step, name in enumerate(("lm1b_fmlm.ckpt", "owt_fmlm.ckpt")):
        trained, average = (random_weights(seed, two_times=True) for seed in (4, 5))
        content = lightning(trained, config_of("dos_denoiser"), ema=average_of(average, 0.9999)) | {"global_step": 1 + step}
        files[name] = write(tmp_path / name, content).read_bytes()
    hub = FakeHub("owner/repo", "main", "c" * 40, files, kind="models")
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.close()


def test_a_released_file_is_fetched_from_a_repository_and_sampled(hub, tmp_path, monkeypatch, capfd):
    words = str(tokenizer_folder(tmp_path / "words"))
    lm = flm.load("owner/repo", "cpu", file="owt_fmlm.ckpt", tokenizer_name_or_path=words)
    assert hub.asked == ["owt_fmlm.ckpt"] and lm.length == L
    texts = lm.generate(3, 4, seed=1, gamma=1.0)
    here = flm.load(tmp_path / "owt_fmlm.ckpt", "cpu", tokenizer_name_or_path=words)
    assert texts == here.generate(3, 4, seed=1, gamma=1.0)

    said = ["--file", "owt_fmlm.ckpt", "--published", f"tokenizer_name_or_path={words}", "--device", "cpu"]
    assert run(["generate", "owner/repo", *said, "-n", "3", "--steps", "4", "--seed", "1", "--option", "gamma=1.0"]) == 0
    assert capfd.readouterr().out.splitlines()[-3:] == texts

    options = [
        "mode=import",
        "eval.checkpoint_path=owner/repo",
        "eval.hub_file=lm1b_fmlm.ckpt",
        f"hydra.run.dir={tmp_path}/run",
    ]
    assert command(monkeypatch, *options, f"eval.tokenizer_name_or_path={words}") == 0
    found = json.loads((tmp_path / "run" / "import.json").read_text())
    assert found["checkpoint"]["sha256"] == hashlib.sha256((tmp_path / "lm1b_fmlm.ckpt").read_bytes()).hexdigest()
    assert hub.asked == ["owt_fmlm.ckpt", "lm1b_fmlm.ckpt"]  # one at a time, each once
    assert flm.load(tmp_path / "run", "cpu").generate(3, 4, seed=1, gamma=1.0) == texts

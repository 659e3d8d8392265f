"""Two processes of one evaluation write what one alone writes. One pair of processes does everything."""

import json
import os

import pytest
import torch
from hydra.utils import get_method
from running import config_of, tiny, write_corpus
from two_processes import free_ports, run_two

from flm.algos.flm import FLM
from flm.report.frontier.frontier import frontier
from flm.tasks.processes import Team, team_of
from flm.tasks.sample_eval import sample_eval
from flm.tasks.train import train

BATCHES, BATCH = 3, 2
TIMES = ("seconds", "ms_per_sample", "tokens_per_second")


def evaluate(folder, checkpoint, ports=None):
    """Both modes, with an odd number of batches; what they returned, and what this process made."""
    made = []
    generate = FLM.generate

    def counted(self, canvas, steps, *arguments, **options):
        made.append([steps, len(canvas.tokens)])
        return generate(self, canvas, steps, *arguments, **options)

    FLM.generate = counted
    try:
        size = [f"loader.eval_batch_size={BATCH}", f"sampling.num_sample_batches={BATCHES}"]
        run = [f"eval.checkpoint_path={checkpoint}", *size]
        sampled = ["mode=sample_eval", "sampling.steps=[2,4]", "sampling.film=true", *run]
        swept = ["mode=frontier", "frontier.steps=[3]", "frontier.temperature=[0.5,1.0]", *run]
        samples, points = config_of(folder / "samples", *sampled), config_of(folder / "frontier", *swept)
        returned = []
        for task, config in ((sample_eval, samples), (frontier, points)):
            if ports:  # one each: a process may begin the second while the other still ends the first
                os.environ["MASTER_PORT"] = str(ports.pop())
            returned.append(bool(task(config)))
    finally:
        FLM.generate = generate
    return {"returned": returned, "made": made}


def work(rank: int, folder, checkpoint, ports: list[int]) -> None:
    """Each process with a folder of its own, to see who writes."""
    found = evaluate(folder / str(rank), checkpoint, ports)
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with the files of the two processes (0, 1) and of one alone, and what each said."""
    folder = tmp_path_factory.mktemp("processes")
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"), documents=20)
    train(config_of(folder / "trained", *tiny(corpus, "logger=none", "trainer.max_steps=10", "callbacks.generation=null")))
    checkpoint = folder / "trained" / "checkpoints" / "last.ckpt"
    said = {"alone": evaluate(folder / "alone", checkpoint)}
    run_two(work, folder, checkpoint, free_ports(2))
    return folder, said | {rank: json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)}


def without_times(value):
    """A result file without what depends on the clock, the folder or the command."""
    if isinstance(value, dict):
        left_out = (*TIMES, "config", "command", "processes")
        return {key: without_times(item) for key, item in value.items() if key not in left_out}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_the_texts_are_those_of_one_process(runs):
    folder, _ = runs
    texts = sorted(path.relative_to(folder / "alone") for path in (folder / "alone").rglob("*.jsonl"))
    assert len(texts) == 5  # two numbers of steps, real text, two points
    for path in texts:
        lines = (folder / "alone" / path).read_text()
        assert (folder / "0" / path).read_text() == lines and len(set(lines.splitlines())) == BATCHES * BATCH


def test_so_are_all_results_but_the_times(runs):
    folder, _ = runs
    for name in ("samples/results.json", "samples/film-2.json", "samples/film-4.json", "frontier/frontier.json"):
        alone, pair = (json.loads((folder / who / name).read_text()) for who in ("alone", "0"))
        assert without_times(pair) == without_times(alone)
    results = json.loads((folder / "0" / "samples" / "results.json").read_text())["generated"]["2"]
    assert results["network_evaluations"] == 2 and all(results[key] > 0 for key in TIMES)


def test_each_makes_its_share_and_the_first_one_writes(runs):
    folder, said = runs
    one_step, rest = [1, BATCH], [[2, BATCH], [4, BATCH], [3, BATCH], [3, BATCH]]
    for who, share in (("alone", 3), (0, 2), (1, 1)):
        made = said[who]["made"]
        assert made.count(one_step) == 2 and len(made) == 2 + share * len(rest)  # a warm-up each
        assert all(made.count(call) == share * rest.count(call) for call in rest)
    assert [said[who]["returned"] for who in ("alone", 0, 1)] == [[True, True], [True, True], [False, False]]
    assert not (folder / "1").exists()


def test_alone_nothing_is_started(monkeypatch):
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False) if size is None else monkeypatch.setenv("WORLD_SIZE", size)
        with team_of(torch.device("cpu")) as team:
            assert team == Team() and list(team.share(3)) == [0, 1, 2] and not torch.distributed.is_initialized()


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for key, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(key, value)
    with (
        pytest.raises(ValueError, match="process 3 of this machine has no CUDA device, there are 2"),
        team_of(torch.device("cuda")),
    ):
        pass


@pytest.mark.parametrize("mode", ["flow_lm_eval", "solve_eval", "artifact"])
def test_what_shares_nothing_out_refuses_several(mode, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = config_of(tmp_path, f"mode={mode}")
    with pytest.raises(ValueError, match=f"mode={mode} runs in one process, not 2"):
        get_method(config.mode._target_)(config)

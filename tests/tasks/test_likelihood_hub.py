"""mode=ppl_eval on published data sets: zero-shot texts, and sets without training text."""

import gzip
import json

import pytest
from running import config_of, tiny, write_corpus

from flm.tasks.ppl_eval import ppl_eval
from flm.tasks.train import train

WORDS = "the cat sees a dog and one bird likes rain by the sea"
FEW = ("eval.draws_per_example=1", "eval.max_examples=2", "eval.pilot_draws=4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    train(config_of(run, *tiny(write_corpus(run / "corpus"), "trainer.max_steps=2", "trainer.val_check_interval=2")))
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture
def data_dir(tmp_path):
    for name, file, key in (("lambada", "test.jsonl.gz", "text"), ("ptb", "validation.jsonl.gz", "sentence")):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps({key: f"{WORDS} 's end {i}"}) + "\n" for i in range(6))
        (tmp_path / name / file).write_bytes(gzip.compress(lines.encode()))
    return tmp_path


def test_zero_shot_and_evaluation_only(checkpoint, data_dir):
    found = ppl_eval(
        config_of(
            data_dir / "run",
            "mode=ppl_eval",
            f"eval.checkpoint_path={checkpoint}",
            "eval.real_data=current",
            "data=lambada",
            "+data@eval.corpora.ptb=ptb",
            *(f"{node}.cache_dir={data_dir}" for node in ("data", "eval.corpora.ptb")),
            "eval.corpora.ptb.train=null",
            *FEW,
        )
    )
    first, ptb = found["corpora"]["data"], found["corpora"]["ptb"]
    # nothing to choose the bound's settings on, so nothing is chosen and all are given
    assert found["chosen"] is None or len(found["measured_on_training_text"]) == 1
    assert first["corpus"] == "lambada (default)" and ptb["corpus"] == "ptb (penn_treebank)"
    assert first["wrap"] == "bos_eos" and first["trained_on"] is False
    for corpus in (first, ptb):
        assert all(row["tokens"] == 64 and row["nats_per_token"] > 0 for row in corpus["variants"].values())
    text = f"{WORDS}'s end 0"  # as the detokeniser writes it; a passage of LAMBADA keeps its blank and gets a line break
    per_token = len(text) / (len(text) + 1) * 30 / 32
    assert ptb["bytes_estimated"] == round(per_token * 64)

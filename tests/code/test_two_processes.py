"""mode=code_eval on two processes gives what one gives: each writes and judges its share, the first one keeps the files."""

import json
import os

import pytest
from code_files import HUMAN_EVAL, INFILLING, write
from running import config_of, tiny, write_corpus
from two_processes import free_ports, run_two

from flm.code.cell import seccomp
from flm.code.code_eval import code_eval
from flm.tasks.train import train

if not seccomp.supported():
    pytest.skip("generated code is only run where it can be confined", allow_module_level=True)


def commands(folder, root) -> dict[str, list[str]]:
    """The references of one file; and answers of a model to another, several of each problem."""
    common = ["mode=code_eval", "code_eval.limits.cpu_seconds=5", "code_eval.limits.wall_seconds=60", "trainer.accelerator=cpu"]
    model = [
        f"eval.checkpoint_path={root / 'trained' / 'checkpoints' / 'last.ckpt'}", "sampling.steps=[1,2]", "code_eval.samples=3",
        "code_eval.k=[1,3]", "loader.eval_batch_size=2",
    ]  # fmt: skip
    return {
        "reference": [*common, f"code_eval.path={root / 'problems.jsonl'}", "code_eval.answers=reference"],
        "model": [*common, f"code_eval.path={root / 'infilling.jsonl'}", *model],
    }


def evaluate(folder, root, ports=None) -> None:
    for name, words in commands(folder, root).items():
        if ports:
            os.environ["MASTER_PORT"] = str(ports.pop())
        returned = code_eval(config_of(folder / name, *words))
        assert bool(returned) == (os.environ.get("RANK", "0") == "0")


def work(rank: int, root, ports) -> None:
    evaluate(root / str(rank), root, ports)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("code")
    write(root / "problems.jsonl", HUMAN_EVAL)
    write(root / "infilling.jsonl", INFILLING)
    corpus = write_corpus(root / "corpus", documents=4)
    (corpus / "code.txt").write_text(
        "".join(row["prompt"] + row["canonical_solution"] + row.get("suffix", "") for row in INFILLING) * 9
    )
    quick = ["logger=none", "trainer.max_steps=2", "callbacks.generation=null", "callbacks.sample=null", "model.length=256"]
    train(config_of(root / "trained", *tiny(corpus, *quick, "algo.clean_given=true")))
    evaluate(root / "alone", root)
    run_two(work, root, free_ports(2))
    return root


@pytest.mark.parametrize("name", ["reference", "model"])
def test_verdicts_and_texts_are_those_of_one_process(root, name):
    alone, first = (json.loads((root / where / name / "code_eval.json").read_text()) for where in ("alone", "0"))
    assert first["by_steps"] == alone["by_steps"] and first["references"] == alone["references"]
    assert alone["by_steps"] and first["problems"] == alone["problems"]
    texts = sorted(path.name for path in (root / "alone" / name).glob("*.jsonl"))
    assert len(texts) == (1 if name == "reference" else 2)
    for text in texts:
        assert (root / "0" / name / text).read_text() == (root / "alone" / name / text).read_text()
    assert not (root / "1" / name).exists()


def test_the_references_pass(root):
    found = json.loads((root / "0" / "reference" / "code_eval.json").read_text())["by_steps"]["reference"]
    assert found["pass_at"]["1"]["mean"] == 1.0 and found["suspicious"] == 0

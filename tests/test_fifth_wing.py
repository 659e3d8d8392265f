"""A wing in somebody else's package: a method, a mode with its YAML, a kind of model file, a judge and a kind of result."""

import json
import math
import sys
from textwrap import dedent

import pytest
from tasks.running import command, tiny, write_corpus

import flm
from flm import registry

FILES = {
    "wing.py": '''
        """What this package adds to flm."""
        from flm.registry import Wing

        WING = Wing(
            model_files={"counts": "fifth.counts:CountsFile"},
            judges={"vowels": "fifth.vowels:make"},
            result_kinds={"loudness": "fifth.loudness:KIND"},
            configs="pkg://fifth.configs",
        )
    ''',
    "unigram.py": '''
        """Tokens one by one, each as frequent as it was: all that is learned is a logit a token."""
        import torch
        from torch import nn

        from flm.algos.algorithm import Algorithm, Bound
        from flm.algos.losses import summed


        class Nothing(nn.Module):
            """No network."""

            def __init__(self, length: int, vocab_size: int):
                super().__init__()


        class Draws:
            def __call__(self, denoiser, canvas, steps, generator, on_step=None):
                probabilities = denoiser.softmax(-1).expand(len(canvas.tokens), -1)
                drawn = torch.multinomial(probabilities, canvas.tokens.shape[1], replacement=True, generator=generator)
                return canvas.fill(drawn)


        class Unigram(Algorithm):
            bound_kind = "exact"

            def __init__(self, backbone, vocab_size: int, length: int):
                super().__init__(vocab_size, length)
                self.backbone = backbone(vocab_size=vocab_size)
                self.logits = nn.Parameter(torch.zeros(vocab_size))

            def nll(self, tokens):
                return -self.logits.log_softmax(-1)[tokens]

            def loss(self, batch, draws):
                nll = self.nll(batch.tokens)
                return summed((nll * batch.weight).sum(), nll.detach(), batch.weight)

            def bound(self, batch, draws, **options):
                return Bound(self.nll(batch.tokens).sum(1))

            def denoiser(self):
                return self.logits

            def sampler(self, **options):
                return Draws(**options)
    ''',
    "counts.py": '''
        """A model as counts of tokens in JSON: the kind of file ends in .counts."""
        import json

        import torch

        from flm.checkpoints.description import Description


        class CountsFile:
            @staticmethod
            def matches(path):
                return path.suffix == ".counts"

            @staticmethod
            def read(path):
                content = json.loads(path.read_text())
                counts = torch.tensor(content["counts"], dtype=torch.float32)
                config = {
                    "algo": {"_target_": "fifth.unigram.Unigram"},
                    "model": {"_target_": "fifth.unigram.Nothing", "length": 6},
                }
                state = {"logits": counts.log()}
                return Description(config, content["tokenizer"], len(counts), 6, 3, average=state), state
    ''',
    "vowels.py": '''
        """A judge that finds every vowel as improbable as 2 nats, and all else certain."""
        import torch

        from flm.judges.gen_ppl import Scorer


        class Vowels(Scorer):
            def encode(self, texts):
                return [list(text.encode()) for text in texts]

            def token_nll(self, ids):
                vowels = torch.tensor(list(b"aeiou"), device=ids.device)
                return 2.0 * torch.isin(ids, vowels).float()


        def make(path, device, batch_size):
            return Vowels("vowels", 1000, 0, batch_size, device)
    ''',
    "loudness.py": '''
        """mode=loudness: a sample of a model in capitals, and how its results are shown."""
        from dataclasses import dataclass
        from typing import Annotated

        from annotated_types import Ge

        from flm.results.kinds import KeyNumber, Reading, ResultKind, Table
        from flm.tasks.evaluation import EvalOptions
        from flm.tasks.machine import Machine
        from flm.tasks.evaluation import load_model
        from flm.tasks.run import Run


        @dataclass(frozen=True)
        class LoudnessOptions:
            marks: Annotated[int, Ge(1)] = 1


        def loudness(config):
            run = Run(config)
            wanted = run.options(LoudnessOptions, "loudness")
            lm = load_model(run.options(EvalOptions, "eval"), Machine.of(run["trainer"], run["model"]))
            (text,) = lm.generate(seed=run["seed"])
            content = run.about("loudness", lm) | {"text": text.upper() + "!" * wanted.marks, "marks": wanted.marks}
            run.write_json("loudness.json", content)


        def read(source):
            marks = source.content["marks"]
            table = Table("loudness", ("text", "marks"), ((source.content["text"], marks),))
            return Reading((table,), (), (KeyNumber("marks", "", float(marks), "higher"),))


        KIND = ResultKind(("loudness.json",), read, "How loud")
    ''',
    "configs/mode/loudness.yaml": """
        # @package _global_
        mode:
          _target_: fifth.loudness.loudness
        loudness:
          _target_: fifth.loudness.LoudnessOptions
          marks: 3
    """,
    "configs/algo/unigram.yaml": "_target_: fifth.unigram.Unigram\n",
    "configs/model/nothing.yaml": "_target_: fifth.unigram.Nothing\nlength: 6\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package on Python's path, known to nobody; afterwards it is forgotten again."""
    root = tmp_path / "outside"
    for name, content in FILES.items():
        path = root / "fifth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(content).lstrip("\n"))
    for folder in ("", "configs", "configs/mode", "configs/algo", "configs/model"):
        (root / "fifth" / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(registry, "_added", dict(registry._added))
    registry._found.cache_clear()
    yield root
    registry._found.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "fifth"]:
        del sys.modules[name]


def results(folder, name):
    return json.loads((folder / name).read_text())


def test_named_by_the_config_it_trains_samples_scores_judges_and_is_reported(package, tmp_path, monkeypatch, capfd):
    data, run, wing = tiny(write_corpus(tmp_path / "corpus", documents=10))[1:], tmp_path / "run", "wings=[fifth]"
    small = ["loader.global_batch_size=8", "loader.eval_batch_size=4", "callbacks.sample=null", "callbacks.generation=null"]
    short = ["trainer.max_steps=30", "trainer.accelerator=cpu", "optim.lr=0.3", "lr_scheduler=none", "logger=none"]
    method = ["algo=unigram", "model=nothing"]
    assert command(monkeypatch, wing, *method, *data, *small, *short, "training.ema=0.5", f"hydra.run.dir={run}") == 0

    evaluate = [wing, f"eval.checkpoint_path={run}", "loader.eval_batch_size=4", *data, "trainer.accelerator=cpu"]
    sampled, scored, loud = tmp_path / "sampled", tmp_path / "scored", tmp_path / "loud"
    judged = ["mode=sample_eval", "sampling.steps=1", "eval.scorer=vowels", "eval.protocols=whole_text"]
    assert command(monkeypatch, *evaluate, *judged, f"hydra.run.dir={sampled}") == 0
    (perplexity,) = results(sampled, "results.json")["generated"]["1"]["metrics"]["gen_ppl"]
    texts = [json.loads(line)["text"] for line in (sampled / "samples-1.jsonl").read_text().splitlines()]
    vowels = sum(c in "aeiou" for text in texts for c in text[1:])
    assert perplexity["scorer"] == "vowels"
    assert perplexity["nats_per_token"]["mean"] == pytest.approx(2 * vowels / sum(len(text) - 1 for text in texts))

    assert command(monkeypatch, *evaluate, "mode=ppl_eval", "eval.max_examples=8", f"hydra.run.dir={scored}") == 0
    likelihood = results(scored, "likelihood.json")["likelihood"]
    assert likelihood["kind"] == "exact" and likelihood["corpora"]["data"]["variants"]["model"]["nats_per_token"] < 3.1

    assert command(monkeypatch, *evaluate, "mode=loudness", "loudness.marks=5", f"hydra.run.dir={loud}") == 0
    assert results(loud, "loudness.json")["text"].endswith("!!!!!")
    capfd.readouterr()
    assert command(monkeypatch, *evaluate, "mode=loudness", "loudness.marks=0", f"hydra.run.dir={tmp_path / 'no'}") == 1
    assert "error: loudness.marks must be" in capfd.readouterr().err

    report = tmp_path / "report"
    inputs = f"report.inputs=[{run},{sampled},{scored},{loud}]"
    assert command(monkeypatch, wing, "mode=report", inputs, f"hydra.run.dir={report}") == 0
    page = (report / "report.html").read_text()
    assert "How loud" in page and "!!!!!" in page and "Unigram" in page


def test_an_installed_package_is_found_by_its_entry_point(package, tmp_path, monkeypatch):
    """And its kind of model file is one that flm.load takes, with the model's own numbers."""
    from flm.data.tokenizers import CharacterTokenizer

    tokenizer = CharacterTokenizer().build(lambda: iter(["abc"]))
    counts = [1 + index for index in range(tokenizer.vocab_size)]
    path = tmp_path / "model.counts"
    path.write_text(json.dumps({"counts": counts, "tokenizer": tokenizer.to_dict()}))
    with pytest.raises(ValueError, match="model.counts: not a checkpoint"):
        flm.load(path, device="cpu")

    installed = package / "fifth-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: fifth\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[flm.wings]\nfifth = fifth\n")
    registry._found.cache_clear()
    lm = flm.load(path, device="cpu")
    ids = lm.tokenizer.encode("abca")
    log_p = sum(math.log(counts[i] / sum(counts)) for i in ids)
    assert lm.nll("abca").nats == pytest.approx(-log_p) and lm.source.step == 3
    assert lm.generate(n=2, seed=1) == lm.generate(n=2, seed=1)

    loud = tmp_path / "loud"
    run = ["mode=loudness", f"eval.checkpoint_path={path}", "trainer.accelerator=cpu", f"hydra.run.dir={loud}"]
    assert command(monkeypatch, *run) == 0
    assert results(loud, "loudness.json")["checkpoint"]["path"] == str(path)


def test_what_is_no_wing_is_one_line(monkeypatch, capfd, tmp_path):
    for given, message in (("[nowhere_at_all]", "nowhere_at_all is no wing"), ("flm.data", "flm.data is no wing")):
        assert command(monkeypatch, f"wings={given}", f"hydra.run.dir={tmp_path}") == 1
        assert f"error: wings: {message}" in capfd.readouterr().err

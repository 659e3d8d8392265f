"""Strings in, strings out: from a checkpoint, from a folder, in a fresh process, from the shell."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from published.published_layouts import L, V, tokenizer_folder
from published.published_layouts import flm_v1 as published
from tasks.running import command, config_of, tiny, write_corpus

import flm
from flm import LanguageModel
from flm.__main__ import main
from flm.checkpoints.foreign import ImportChoices
from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.export.export import export
from flm.samplers.canvas import Canvas, LengthCheck, pieces_of
from flm.tasks.sample_eval import sample_eval
from flm.tasks.train import train

ROOT = Path(flm.__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents=20)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """A short run whose average lies elsewhere than its last weights."""
    folder = tmp_path_factory.mktemp("trained")
    options = ("trainer.max_steps=40", "training.ema=0.9", "optim.lr=1e-2", "logger=none", "sampling.temperature=0.7")
    train(config_of(folder, *tiny(corpus, *options)))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def autoregressive(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ar")
    train(config_of(folder, *tiny(corpus, "algo=ar", "trainer.max_steps=30", "optim.lr=1e-2", "logger=none")))
    return folder / "checkpoints" / "last.ckpt"


def exported(checkpoint, folder, *overrides):
    common = ["mode=export", f"eval.checkpoint_path={checkpoint}", "trainer.accelerator=cpu"]
    export(config_of(folder, *common, *overrides))
    return folder


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    return exported(checkpoint, tmp_path_factory.mktemp("exported") / "model", "export.license=apache-2.0")


@pytest.fixture(scope="module")
def lm(folder):
    return flm.load(folder, device="cpu")


FRESH = """
import json, resource, sys
import flm
after_import = [name for name in ("torch", "lightning", "transformers", "hydra", "omegaconf") if name in sys.modules]
lm = flm.load(sys.argv[1], device="cpu")
cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime
from flm.samplers.canvas import Canvas
tokens = lm.fill(Canvas.blank(3, lm.length), steps=4, seed=11).tolist()
after_use = [name for name in ("lightning", "transformers", "hydra", "omegaconf", "datasets") if name in sys.modules]
texts = lm.generate(n=3, steps=4, seed=11)
print(json.dumps([after_import, after_use, cpu, tokens, texts]))
"""


def test_a_fresh_process_makes_the_same_tokens_from_the_folder(checkpoint, folder, tmp_path):
    run = [sys.executable, "-c", FRESH, str(folder)]
    done = subprocess.run(
        run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    after_import, after_use, cpu, tokens, texts = json.loads(done.stdout)
    assert after_import == after_use == []
    print(f"import and load: {cpu:.1f} s of CPU")
    assert cpu < 10
    here = flm.load(checkpoint, device="cpu")
    assert here.fill(Canvas.blank(3, 32), steps=4, seed=11).tolist() == tokens
    assert here.generate(n=3, steps=4, seed=11) == texts == [here.tokenizer.decode(row) for row in tokens]
    assert len(set(texts)) == 3


def test_the_command_line_and_python_agree(checkpoint, lm, tmp_path):
    """The same noise, the options that the recipe records, the same batches."""
    options = ["eval.real_data=null", "sampling.steps=3", "sampling.prompt=the cat", "sampling.num_sample_batches=2", "seed=9"]
    run = ["mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "loader.eval_batch_size=2", "trainer.accelerator=cpu"]
    sample_eval(config_of(tmp_path, *run, *options))
    written = [json.loads(line)["text"] for line in (tmp_path / "samples-3.jsonl").read_text().splitlines()]
    assert lm.generate(n=4, steps=3, prompt="the cat", seed=9, batch_size=2) == written
    assert lm.options == {"temperature": 0.7} and lm.steps == 4
    assert lm.generate(n=4, steps=3, prompt="the cat", seed=9, batch_size=2, temperature=None, solver="heun") != written


def test_they_agree_in_bf16_too(checkpoint, folder, tmp_path):
    """Which is what both take on CUDA."""
    options = ["eval.real_data=null", "sampling.steps=64", "trainer.precision=bf16-mixed", "trainer.accelerator=cpu"]
    sample_eval(config_of(tmp_path, "mode=sample_eval", f"eval.checkpoint_path={checkpoint}", "seed=9", *options))
    written = [json.loads(line)["text"] for line in (tmp_path / "samples-64.jsonl").read_text().splitlines()]
    ours = flm.load(folder, device="cpu")
    assert ours.generate(n=32, steps=64, seed=9) != written
    ours.precision = "bf16-mixed"
    assert ours.generate(n=32, steps=64, seed=9) == written


def test_what_is_given_stays(lm):
    text = lm.generate(prompt="the cat ", suffix=" rain.", steps=2, length=20, seed=3)[0]
    assert lm.tokenizer.encode(text)[:8] == lm.tokenizer.encode("the cat ")
    assert text.endswith(" rain.") and len(lm.tokenizer.encode(text)) == 20
    for text in lm.infill("the [3] sees [2].", n=3, steps=2):
        ids = lm.tokenizer.encode(text)
        given = [*lm.tokenizer.encode("the "), *lm.tokenizer.encode(" sees "), *lm.tokenizer.encode(".")]
        assert len(ids) == 4 + 3 + 6 + 2 + 1 and ids[:4] + ids[7:13] + ids[15:] == given
    assert len(lm.generate(n=5, steps=1, batch_size=2)) == 5
    assert lm.generate(steps=1) == lm.generate(steps=1) != lm.generate(steps=1, seed=1)


def test_templates():
    pieces = pieces_of("[2]a [x] b[10]", lambda text, goes_on: [len(text), goes_on])
    assert pieces == [[0, False], 2, [7, True], 10, [0, True]]
    with pytest.raises(ValueError, match="^where='ab' has no hole"):
        pieces_of("ab", len, "where")


def test_exact_likelihood_is_the_sum_over_blocks(autoregressive, tmp_path):
    lm = flm.load(exported(autoregressive, tmp_path / "ar"), device="cpu")
    text = "the cat sees fish. a dog hears the sea. one bird likes"
    ids = torch.tensor(lm.tokenizer.encode(text))
    assert 32 < len(ids) < 64
    by_hand = 0.0
    for block in (ids[:32], ids[32:]):
        for i in range(len(block)):  # token by token, from a prediction that has seen no more than those before it
            seen = torch.cat([block[:i], torch.zeros(1, dtype=torch.long)])[None]
            by_hand -= lm.algorithm.backbone(seen).probabilities()[0, -1, block[i]].log().item()
    found = lm.nll(text)
    assert found.nats == pytest.approx(by_hand, rel=1e-5) and float(found) == found.nats
    assert (found.kind, found.standard_error, found.num_tokens) == ("exact", 0.0, len(ids))
    assert found.nats_per_token == found.nats / len(ids)


def test_a_bound_says_so_and_how_sure_it_is(lm):
    """Its mean and error against many independent small estimates, on a text of two blocks."""
    text = "the cat sees fish. a dog hears the sea."
    found = lm.nll(text, draws=200, seed=1)
    assert found.kind == "variational upper bound" and found.num_tokens == len(text) > 32
    singles = torch.tensor([lm.nll(text, draws=2, seed=seed).nats for seed in range(100, 200)])
    assert abs(found.nats - singles.mean()) < 4 * found.standard_error
    assert 0 < found.standard_error < 2 * singles.std() / 10
    assert lm.nll(text, draws=1).standard_error is None
    assert lm.nll(text, seed=5) == lm.nll(text, seed=5) != lm.nll(text, seed=6)


def test_either_weights(checkpoint, folder, tmp_path):
    average = read_checkpoint(checkpoint).average
    online = exported(checkpoint, tmp_path / "online", "eval.disable_ema=true")
    for source, use_average, expected in (
        (folder, True, True),
        (online, True, False),
        (checkpoint, True, True),
        (checkpoint, False, False),
    ):
        weights = dict(flm.load(source, use_average=use_average).algorithm.named_parameters())
        assert all(torch.equal(weights[name], value.to(weights[name])) for name, value in average.items()) == expected


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda lm: lm.generate(steps=0), "steps must be a whole number of at least 1 and at most 10000000, or null, not 0"),
        (lambda lm: lm.generate(steps=10**9), "steps must be .*, not 1000000000"),
        (lambda lm: lm.generate(length=10**9), "length must be .* at most 1048576, or null, not 1000000000"),
        (
            lambda lm: lm.generate(length=2049),
            "length: a text of 2,049 tokens, of a model that was trained on 32: at most 2,048 can be asked of it",
        ),
        (lambda lm: lm.infill(["a [2]", "a [999999]"]), "length: a text of 1,000,00[01] tokens, of a model .*: at most 2,048"),
        (lambda lm: lm.fill(Canvas.blank(1, 10**6)), "length: a text of 1,000,000 tokens, of a model .*: at most 2,048"),
        (lambda lm: lm.fill(Canvas.from_pieces([[10**6], 4], 1)), "canvas: token ids must be at least 0 and below"),
        (lambda lm: lm.fill(Canvas.from_pieces([[-1], 4], 1)), "canvas: token ids must be"),
        (lambda lm: lm.generate(n=10**9), "n must be .* at most 1000000, not 1000000000"),
        (
            lambda lm: lm.infill("a [999999999]"),
            "infill: holes of 999,999,999 tokens are longer than any text: at most 1,048,576",
        ),
        (lambda lm: lm.infill("[600000] a [600000]"), "infill: holes of 1,200,000 tokens"),
        (lambda lm: lm.generate(prompt="\udcff"), "prompt: '.*' holds half a surrogate pair"),
        (lambda lm: lm.nll("a \ud83d"), "'a .*' holds half a surrogate pair"),
        (lambda lm: lm.generate(solver={}), "solver must be one of euler, heun, bridge, not {}"),
        (lambda lm: lm.generate(n=0), "n must be"),
        (lambda lm: lm.generate(n=True), "n must be a whole number of at least 1 and at most 1000000, not true"),
        (lambda lm: lm.generate(prompt=3), "prompt must be text, or a list, each text, or null, not 3"),
        (lambda lm: lm.generate(prompt=(text for text in "te")), "prompt must be text, or a list, .* not <generator"),
        (lambda lm: lm.infill(iter(["a [2]"])), "template must be text, or a list, each text, not <list_iterator"),
        (lambda lm: lm.generate(suffix=["a"]), "suffix must be text"),
        (lambda lm: lm.generate(seed=-1), "seed must be a whole number of at least 0"),
        (lambda lm: lm.generate(seed="x"), "seed must be"),
        (lambda lm: lm.generate(temperature="hot"), "temperature must be a number in .0, 1e.06., not hot"),
        (lambda lm: lm.generate(solver="rk4"), "solver must be one of euler, heun, bridge, not rk4"),
        (lambda lm: lm.infill(7), "template must be text, or a list, each text, not 7"),
        (lambda lm: lm.nll(7), "text must be text, not 7"),
        (lambda lm: lm.to("cudaa"), "device must be cpu, cuda or cuda:NUMBER, not 'cudaa'"),
        (lambda lm: lm.to("cuda:99"), "device=cuda:99: PyTorch finds no such CUDA device here"),
        (lambda lm: setattr(lm, "precision", "bf17"), "precision must be 32-true, bf16-mixed or 16-mixed"),
        (lambda lm: lm.generate(batch_size=0), "batch_size must be"),
        (lambda lm: lm.generate(length=0), "length must be"),
        (lambda lm: lm.generate(steps=1.5), "steps must be"),
        (lambda lm: lm.generate(prompt="t" * 20, suffix="e" * 12), r"prompt \(20 tokens\) and suffix \(12\) leave nothing.*32"),
        (
            lambda lm: lm.generate(magic=3),
            "magic: FLM with solver=euler takes no magic; it takes churn, churn_noise, temperature",
        ),
        (lambda lm: lm.generate(temperature=-1), "temperature must be a number in .0, 1e.06., not -1"),
        (lambda lm: lm.infill("no hole [x]"), "infill='no hole .*has no hole"),
        (lambda lm: lm.infill("a [0] b"), "hole of 0 tokens"),
        (lambda lm: lm.infill("a [3] b", steps=0), "steps must be"),
        (lambda lm: lm.nll(""), "no tokens"),
        (lambda lm: lm.nll("a", draws=0), "draws must be"),
        (lambda lm: flm.load("nowhere.ckpt"), "nowhere.ckpt: no such file or folder"),
        (lambda lm: flm.load(""), "^a model has no empty name: give a run folder"),
        (lambda lm: flm.load("runs/nowhere.ckpt"), "runs/nowhere.ckpt: no such file or folder"),
        (lambda lm: flm.load(ROOT / "docs"), "docs: not an exported model: it has no config.json"),
        (lambda lm: flm.load(ROOT / "README.md"), "README.md: not a"),
    ],
)
def test_mistakes_are_one_line(lm, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(lm)
    assert "\n" not in str(caught.value)


def test_of_a_text_beyond_its_training_it_is_said_once(folder, caplog):
    lm = flm.load(folder)
    lm.generate(steps=1)
    assert not caplog.records
    lm.generate(n=3, steps=1, length=33, batch_size=1)
    lm.infill("a [20] b", steps=1)
    (record,) = caplog.records
    assert record.getMessage() == (
        "length: a text of 33 tokens, of a model that was trained on 32: it has learned nothing of positions beyond"
    )
    lm.generate(steps=1, length=34)
    assert len(caplog.records) == 2


def test_a_network_that_reads_no_more_positions_is_not_asked_for_more(lm):
    limited = LanguageModel(lm.algorithm, lm.tokenizer)
    limited.check_length = LengthCheck(32, most=40)
    with pytest.raises(ValueError, match="a text of 41 tokens, .*: at most 40 can be asked"):
        limited.generate(length=41)


def test_a_published_checkpoint_loads_like_any_other(tmp_path):
    source, words = tmp_path / "published.ckpt", str(tokenizer_folder(tmp_path / "bert"))
    torch.save(published()[0], source)
    with pytest.raises(ValueError, match="published.ckpt: no tokenizer is known for 15 tokens"):
        flm.load(source)
    with pytest.raises(ValueError, match="lenght: load takes no lenght; did you mean length"):
        flm.load(source, lenght=3)
    lm = flm.load(source, device="cpu", tokenizer_name_or_path=words)
    canvas = Canvas.blank(2, L)
    algorithm, _ = load_algorithm(source, choices=ImportChoices(tokenizer_name_or_path=words))
    assert torch.equal(lm.fill(canvas, 3, seed=2), LanguageModel(algorithm, lm.tokenizer, steps=3).fill(canvas, seed=2))
    assert (lm.length, lm.algorithm.vocab_size, lm.steps) == (L, V, 64)
    text = lm.generate(prompt="the cat", steps=2)[0]
    assert text.startswith("the cat")
    # weights of the file: its average, not its trained ones
    assert torch.equal(lm.algorithm.backbone.input_table, published()[2]["vocab_embed.embedding"])


def test_a_tokenizer_of_another_size_is_refused(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.glob("*.*"):
        (other / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["@"] = len(tokenizer["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="tokenizer.json: changed since it was exported"):
        flm.load(other)
    config = json.loads((other / "config.json").read_text())
    del config["flm"]["sha256"]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{other}: its tokenizer has .* tokens, its model"):
        flm.load(other)


def test_the_shell_says_what_python_says(folder, lm, capsys):
    common = [str(folder), "--device", "cpu", "--seed", "4"]
    assert main(["generate", *common, "-n", "2", "--steps", "3", "--prompt", "the ", "--option", "temperature=0.9"]) == 0
    assert capsys.readouterr().out.splitlines() == lm.generate(n=2, steps=3, prompt="the ", seed=4, temperature=0.9)
    assert main(["infill", *common, "the [3] sees [2].", "--json", "--option", "solver=heun"]) == 0
    assert json.loads(capsys.readouterr().out) == lm.infill("the [3] sees [2].", seed=4, solver="heun")[0]
    assert main(["nll", *common, "the cat"]) == 0
    assert json.loads(capsys.readouterr().out)["nats"] == lm.nll("the cat", seed=4).nats
    assert main(["generate", *common, "--steps", "0"]) == 1
    said = capsys.readouterr()
    assert (
        said.err == "error: steps must be a whole number of at least 1 and at most 10000000, or null, not 0\n" and not said.out
    )


def test_the_card_names_licence_recipe_and_measurements(checkpoint, folder, corpus, tmp_path, monkeypatch, capfd):
    run = ["mode=ppl_eval", f"eval.checkpoint_path={checkpoint}", "trainer.accelerator=cpu", "eval.pilot_draws=0"]
    data = [*tiny(corpus)[1:], "eval.max_examples=2", "loader.eval_batch_size=2"]
    assert command(monkeypatch, *run, *data, f"hydra.run.dir={tmp_path / 'nll'}") == 0
    measured = tmp_path / "nll" / "likelihood.json"
    (row,) = next(iter(json.loads(measured.read_text())["likelihood"]["corpora"].values()))["variants"].values()
    wanted = ["mode=export", f"eval.checkpoint_path={checkpoint}", f"export.results=[{measured}]", "trainer.accelerator=cpu"]
    assert command(monkeypatch, *wanted, "export.license=cc-by-4.0", f"hydra.run.dir={tmp_path / 'model'}") == 0
    card = (tmp_path / "model" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "flm" and "arXiv 2602.16813" in card
    assert f"| {row['nats_per_token']:.4g} | {row['perplexity']:.4g} | {row['bits_per_byte']:.4g} |" in card
    assert '"lr": 0.01' in card and '"_target_": "flm.data.corpora.text.TextCorpus"' in card
    assert read_checkpoint(checkpoint).sha256 in card and str(corpus.parent) not in card
    capfd.readouterr()
    for override, named in (
        ("eval.disable_ema=true", "measured with another eval.disable_ema"),
        (f"eval.checkpoint_path={checkpoint.with_name('step_0000010.ckpt')}", "measured on another checkpoint"),
        (f"export.results=[{checkpoint.parents[1] / 'run.json'}]", "export.results: .*run.json|not a result"),
        ("export.repo_id=nonsense", "export.repo_id=nonsense is no name"),
    ):
        assert command(monkeypatch, *wanted, override, f"hydra.run.dir={tmp_path / 'other'}") == 1
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert any(part in line for part in named.split("|")), line
    assert not (tmp_path / "other" / "config.json").exists()


def test_several_prompts_share_a_batch_and_every_text_has_its_ids(checkpoint):
    lm = flm.load(checkpoint, device="cpu")
    prompts = ["the cat ", "a ", "one bird"]
    texts = lm.generate(n=2, steps=2, prompt=prompts)
    assert [text.startswith(prompts[i // 2]) for i, text in enumerate(texts)] == [True] * 6
    assert all(lm.tokenizer.decode(text.ids) == text and len(text.ids) == lm.length for text in texts)
    # what stands in a row is its own: the noise is that of a batch of two, whatever the other prompt
    assert lm.generate(steps=2, prompt=prompts[:2])[1] == lm.generate(n=2, steps=2, prompt="a ")[1]
    assert lm.generate(n=3, steps=2, prompt=["the "]) == lm.generate(n=3, steps=2, prompt="the ")
    templates = ["the [4] sees.", "a [2] dog [2]"]
    assert lm.infill(templates, n=2, steps=2) == [t for one in templates for t in lm.infill(one, n=2, steps=2)]
    with pytest.raises(ValueError, match="infill='none' has no hole"):
        lm.infill(["the [4]", "none"], on_step=lambda moment: pytest.fail("begun before all were read"))


def test_every_step_of_every_batch_is_shown(checkpoint):
    lm, seen = flm.load(checkpoint, device="cpu"), []
    texts = lm.generate(n=3, steps=4, prompt="the ", batch_size=2, on_step=seen.append)
    assert [(moment.index, len(moment.tokens())) for moment in seen] == [(i, rows) for rows in (2, 1) for i in range(4)]
    assert all(lm.tokenizer.decode(row.tolist()).startswith("the ") for moment in seen for row in moment.tokens())
    assert len(texts) == 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_counts_the_steps_of_all_batches(checkpoint, monkeypatch):
    lm, seen = flm.load(checkpoint, device="cpu"), []
    wanted = lm.generate(n=3, steps=4, batch_size=2)
    for terminal in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert lm.generate(n=3, steps=4, batch_size=2, progress=True, on_step=seen.append) == wanted
        lm.infill(["the [4]", "a [2]"], steps=3, progress=True)
        said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
        if terminal.isatty():
            assert "8/8 steps" in said and "6/6 steps" in said
        else:
            assert said == ""
    assert [moment.index for moment in seen] == [0, 1, 2, 3] * 4
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    lm.generate(n=3, steps=4)
    assert terminal.getvalue() == ""


def test_a_default_dtype_of_the_caller_changes_no_model():
    texts = {}
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            lm = flm.load("builtin:text", device="cpu")
            assert torch.get_default_dtype() == default
            texts[default] = lm.generate(n=2, steps=2), lm.nll("The cat", draws=4).nats
        finally:
            torch.set_default_dtype(torch.float32)
        assert {parameter.dtype for parameter in lm.algorithm.parameters()} == {torch.float32}
    assert texts[torch.float32] == texts[torch.float64]


def test_weights_rounded_to_a_dtype(checkpoint):
    text = "the cat sees fish."
    exact, rounded = flm.load(checkpoint, device="cpu"), flm.load(checkpoint, device="cpu", dtype="bfloat16")
    for (name, one), (_, other) in zip(exact.algorithm.named_parameters(), rounded.algorithm.named_parameters(), strict=True):
        assert other.dtype == torch.bfloat16 and torch.equal(other, one.bfloat16()), name
    for (name, one), (_, other) in zip(exact.algorithm.named_buffers(), rounded.algorithm.named_buffers(), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype, name
    assert rounded.precision == "bf16-mixed" and len(rounded.generate(steps=2, prompt="the ")[0]) > 4
    assert rounded.nll(text, seed=1).nats == pytest.approx(exact.nll(text, seed=1).nats, rel=0.03)
    assert flm.load(checkpoint, device="cpu", dtype=torch.float32).generate(steps=2) == exact.generate(steps=2)
    with pytest.raises(ValueError, match="^dtype must be float32, bfloat16, float16 or null, not int8$"):
        exact.to(dtype="int8")

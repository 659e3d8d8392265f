"""A likelihood is of what is scored: given tokens condition it, padding is not there, and both are counted as nothing."""

import itertools
import json
import math
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from code_files import write
from every_algorithm import CASES, EXTRA, IDS, MODELS, NAMES, TEACHERS, L, V, build
from running import command

from flm.algos.algorithm import Batch
from flm.data.corpora.pairs import PairCorpus
from flm.data.layouts import LineLayout, ResponseLayout, ScatterLayout, SpanLayout
from flm.data.loaders import collate
from flm.data.module import TextDataModule
from flm.data.tokenizers import ByteTokenizer
from flm.likelihood.bits_per_byte import scored_bytes, scored_texts
from flm.likelihood.held_out import drawn_bounds, likelihood

GIVEN, SCORED = 3, 3  # then padding


def batch(padding: int = 5, given: int = 7) -> Batch:
    """Four rows: tokens that are given, some that are scored, and padding."""
    tokens = torch.randint(V - 1, (4, L), generator=torch.Generator().manual_seed(1))
    tokens[:, GIVEN - 1] = given
    weight, documents = torch.zeros(4, L), torch.zeros(4, L, dtype=torch.long)
    weight[:, GIVEN : GIVEN + SCORED] = 1
    tokens[:, GIVEN + SCORED :], documents[:, GIVEN + SCORED :] = padding, -1
    return Batch(tokens, weight, documents)


def nats(algorithm, rows: Batch) -> torch.Tensor:
    """(4,), the mean of several draws of each sequence."""
    (drawn,) = drawn_bounds(algorithm, [rows], 6, seed=0)
    assert drawn.num_tokens.tolist() == (rows.weight > 0).sum(1).tolist()
    return drawn.nats.mean(1)


@pytest.mark.parametrize("name, options", CASES, ids=IDS)
def test_given_tokens_condition_and_padding_does_not_matter(name, options):
    algorithm = build(name, options).eval()
    if algorithm.bound_kind is None:
        pytest.skip("no likelihood")
    found = nats(algorithm, batch())
    torch.testing.assert_close(nats(algorithm, batch(padding=11)), found)
    assert (nats(algorithm, batch(given=8)) - found).abs().max() > 1e-6
    assert nats(algorithm, Batch(*vars(batch()).values())).isfinite().all()


@pytest.mark.parametrize("name", ["ar", "mdlm", "dfm", "native_flow"])
def test_of_a_network_that_knows_nothing_it_is_log_v_for_each_scored_token(name):
    """Untrained, it predicts all tokens alike, and the bound of masked states is then exact whatever is drawn."""
    algorithm = build(name, disturbed=False).eval()
    with torch.no_grad():
        for parameter in algorithm.parameters():
            parameter.zero_()
    whole = Batch(batch().tokens, torch.ones(4, L))
    torch.testing.assert_close(nats(algorithm, whole), torch.full((4,), L * math.log(V), dtype=torch.float64))
    torch.testing.assert_close(nats(algorithm, batch()), torch.full((4,), SCORED * math.log(V), dtype=torch.float64))
    found = likelihood(algorithm, [batch(), whole], 2, 0)
    assert found.num_tokens == 4 * SCORED + 4 * L
    assert found.nats_per_token.mean == pytest.approx(math.log(V))


def test_autoregression_is_a_chain():
    """-log p(a, b) = -log p(a) + -log p(b | a), each exact."""
    algorithm, tokens = build("ar").eval(), batch().tokens
    first, second = torch.zeros(4, L), torch.zeros(4, L)
    first[:, :5], second[:, 5:] = 1, 1
    parts = [nats(algorithm, Batch(tokens, weight)) for weight in (first, second)]
    torch.testing.assert_close(sum(parts), nats(algorithm, Batch(tokens, torch.ones(4, L))))


def test_a_masked_models_bound_of_one_token_is_its_cross_entropy_there():
    """With one token to score there is one way to mask it: nothing is left to chance."""
    algorithm, rows = build("mdlm").eval(), batch()
    rows.weight = torch.zeros(4, L)
    rows.weight[:, GIVEN] = 1
    rows.documents = None
    state = rows.tokens.clone()
    state[:, GIVEN] = algorithm.source.mask_id
    with torch.no_grad():
        exact = -algorithm.denoiser()(state).log_prob(rows.tokens)[:, GIVEN]
    torch.testing.assert_close(nats(algorithm, rows), exact)


def test_texts_of_scored_runs():
    tokenizer = ByteTokenizer().build(lambda: iter(()))
    ids = tokenizer.encode("a: é b") + [tokenizer.eos_id]
    weight = torch.tensor([[0.0, 0, 0, 1, 1, 0, 1, 1]])
    assert list(scored_texts(Batch(torch.tensor([ids]), weight), tokenizer)) == ["é", "b"]


WORDS = "a ée 語 😀 bb ccc dd e ff g".split()
PAIRS = [{"prompt": f"say {word}", "response": f"{word}\n{word}"} for word in WORDS]
LENGTHS = [len(word.encode()) for word in WORDS]  # in tokens of bytes


def hidden(levels: int) -> int:
    """Tokens that rows of so many levels hide of all responses."""
    return sum(max(1, round((2 * n + 1) * level / (levels - 1))) for n in LENGTHS for level in range(levels))


# layout, and by hand: tokens, and bytes of text, of all rows of the ten pairs
LAYOUTS = {
    "response": (ResponseLayout, sum(2 * n + 2 for n in LENGTHS), sum(2 * n + 1 for n in LENGTHS)),  # an end after each
    "spans": (partial(SpanLayout, levels=4), hidden(4), hidden(4)),
    "scattered": (partial(ScatterLayout, levels=3), hidden(3), hidden(3)),
    # of two equal lines one is hidden, then both
    "lines": (partial(LineLayout, line_length=9, levels=2), sum(3 * n for n in LENGTHS), sum(3 * n for n in LENGTHS)),
}


@pytest.mark.parametrize("padding", ["excluded", "target"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_of_ten_pairs_counted_by_hand(name, padding, tmp_path):
    layout, tokens, num_bytes = LAYOUTS[name]
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    corpus = PairCorpus(path, path, layout=layout(padding=padding), cache_dir=tmp_path / "data")
    data = TextDataModule(corpus, ByteTokenizer(), 48, eval_batch_size=7)
    batches = list(data.valid_loader())
    assert sum(int(rows.counted.sum()) for rows in batches) == tokens
    assert scored_bytes(batches, data.tokenizer) == num_bytes
    filled = sum(int(rows.scored.sum()) for rows in batches) - tokens
    assert filled >= (10 if padding == "target" or name == "lines" else 0) and (
        filled == 0 or name == "lines" or padding == "target"
    )
    if name == "response":
        assert "".join(text for rows in batches for text in scored_texts(rows, data.tokenizer)) == "".join(
            pair["response"] for pair in PAIRS
        )


@pytest.mark.parametrize("padding", ["excluded", "target"])
@pytest.mark.parametrize("name, options", CASES, ids=IDS)
def test_every_bound_is_divided_by_the_text(name, options, padding):
    """Ten pairs of ids, rows of two kinds: nats of all that has weight, over tokens of the text."""
    algorithm = build(name, options).eval()
    if algorithm.bound_kind is None:
        pytest.skip("no likelihood")
    end = SimpleNamespace(eos_id=V - 1)
    pairs = [([1 + n, 2], [3 + n, 4, 5][: 1 + n % 3]) for n in range(10)]
    layouts = [(ResponseLayout(padding), 0), (SpanLayout(levels=1, max_spans=1, padding=padding), 0)]
    for layout, variant in layouts:
        rows = collate([layout.row(*pair, end, L, variant, random.Random(n)) for n, pair in enumerate(pairs)])
        by_hand = sum(len(response) for _, response in pairs) + (10 if isinstance(layout, ResponseLayout) else 0)
        (drawn,) = drawn_bounds(algorithm, [rows], 2, seed=0)
        found = likelihood(algorithm, [rows], 2, seed=0)
        assert found.num_tokens == by_hand
        nats = drawn.nats[:, 0].sum() if algorithm.bound_kind == "exact" else drawn.nats.mean(1).sum()
        assert found.nats_per_token.mean == pytest.approx(float(nats) / by_hand)


RUN = ["debug=tiny", "tokenizer=bytes", "model.length=48", "trainer.max_steps=6", "logger=none", "data=pairs"]
RUN += ["callbacks.sample=null", "callbacks.generation=null"]
BOUNDED = [name for name in NAMES if build(name).bound_kind is not None]
SMALL = ["model.hidden_size=16", "model.num_blocks=1", "model.num_heads=2"]
CORPORA = {
    "response": ["data.layout.padding=target"],
    "spans": ["data=pairs_spans", "data.layout.levels=4"],
    "lines": ["data=pairs_lines", "data.layout.line_length=9", "data.layout.levels=2"],
}


@pytest.mark.parametrize("name, layout", list(zip(BOUNDED, itertools.cycle(CORPORA), strict=False)))
def test_ten_pairs_counted_by_hand(name, layout, tmp_path, monkeypatch):
    """From the command line: what the result file says of tokens and bytes, and that its units follow from them."""
    path = write(tmp_path / "pairs.jsonl", PAIRS)

    def trained(name):
        """A run folder; of a distillation, with its teachers trained first."""
        model, folder = MODELS.get(name, "nano"), tmp_path / name
        teachers = [f"algo.{key}_path={trained(kind)}" for key, kind in TEACHERS.get(name, {}).items()]
        data = [*CORPORA[layout], f"data.path={path}", f"data.valid_path={path}", f"algo={name}", f"model={model}"]
        assert command(monkeypatch, *RUN, *data, *SMALL, *EXTRA[model], *teachers, f"hydra.run.dir={folder}") == 0
        return folder

    scoring = ["mode=ppl_eval", f"eval.checkpoint_path={trained(name)}", "eval.pilot_draws=32", "trainer.accelerator=cpu"]
    assert command(monkeypatch, *scoring, f"hydra.run.dir={tmp_path / 'scored'}") == 0
    found = json.loads((tmp_path / "scored" / "likelihood.json").read_text())["likelihood"]["corpora"]["data"]
    _, tokens, num_bytes = LAYOUTS[layout]
    assert found["bytes_estimated"] == num_bytes
    for row in found["variants"].values():
        assert row["tokens"] == tokens
        assert row["bits_per_byte"] == pytest.approx(row["nats_per_token"] * tokens / math.log(2) / num_bytes)
    if layout == "response":
        assert found["characters_estimated"] == sum(len(pair["response"]) for pair in PAIRS)

"""A likelihood is of what is scored: given tokens condition it, padding is not there, and both are counted as nothing."""

import json
import math

import pytest
import torch
from code_files import write
from every_algorithm import CASES, IDS, L, V, build
from running import command

from flm.algos.algorithm import Batch
from flm.data.tokenizers import ByteTokenizer
from flm.likelihood.bits_per_byte import scored_texts
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
    assert drawn.num_tokens == int((rows.weight > 0).sum())
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


PAIRS = [{"prompt": f"say {word}", "response": word * (1 + len(word) % 3)} for word in "a ée 語 😀 bb ccc dd e ff g".split()]
RUN = ["debug=tiny", "tokenizer=bytes", "model.hidden_size=16", "model.length=48", "trainer.max_steps=10", "logger=none"]
RUN += ["data=pairs", "data.layout.padding=excluded", "callbacks.sample=null", "callbacks.generation=null"]


@pytest.mark.parametrize("algorithm", ["ar", "flm"])
def test_ten_pairs_counted_by_hand(algorithm, tmp_path, monkeypatch):
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    data = [f"data.path={path}", f"data.valid_path={path}"]
    assert command(monkeypatch, *RUN, *data, f"algo={algorithm}", f"hydra.run.dir={tmp_path / 'run'}") == 0
    scoring = ["mode=ppl_eval", f"eval.checkpoint_path={tmp_path / 'run'}", "eval.pilot_draws=32", "trainer.accelerator=cpu"]
    assert command(monkeypatch, *scoring, f"hydra.run.dir={tmp_path / 'scored'}") == 0
    found = json.loads((tmp_path / "scored" / "likelihood.json").read_text())["likelihood"]["corpora"]["data"]
    num_bytes = sum(len(pair["response"].encode()) for pair in PAIRS)
    (row,) = found["variants"].values()
    assert row["sequences"] == 10 and row["tokens"] == num_bytes + 10  # an end after each response
    assert found["bytes_estimated"] == num_bytes
    assert found["characters_estimated"] == sum(len(pair["response"]) for pair in PAIRS)
    assert row["bits_per_byte"] == pytest.approx(row["nats_per_token"] * (num_bytes + 10) / math.log(2) / num_bytes)

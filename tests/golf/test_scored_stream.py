"""Scoring a text chunk by chunk, and learning from what has been scored: nothing that is scored later can matter."""

import math

import pytest
import torch

from flm.algos.ar import AR
from flm.data.byte_table import ByteTable
from flm.draws import Draws
from flm.golf.native_flow import NativeFlow
from flm.golf.native_flow_matcher import NativeFlowMatcher
from flm.golf.scored_stream import Reading, score, scored_chunks
from flm.golf.test_time_training import TestTimeTraining, freeze, rate_factor, score_then_train
from flm.golf.transformer import GolfTransformer
from flm.schema import check

V, L = 11, 8
SIZES = {"length": L, "hidden_size": 16, "num_blocks": 3, "num_heads": 4, "rotary_dims": 2, "bigram_rows": 6}
SIZES |= {"bigram_width": 5, "mlp_ratio": 2}
TABLE = ByteTable(torch.arange(V), torch.arange(V) % 2 == 0, torch.arange(V) < 2)
READING = Reading(window=L, stride=4, chunk=2 * L, batch=3)
SETTINGS = TestTimeTraining(lr=0.2, epochs=3, batch_sequences=1, freeze_blocks=1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = NativeFlow(
        lambda **options: GolfTransformer(**SIZES, **options), V, L, flow=lambda **options: NativeFlowMatcher(**options)
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return built.eval()


def some_text(length, seed=0):
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(seed))


def by_hand(model, text, reading):
    """Nats of every target, window after window, one at a time."""
    total, found = len(text) - 1, []
    start = 0
    while len(found) < total:
        end = min(start + reading.window, total)
        nats = model.nll(text[None, start + 1 : end + 1])[0]
        found += nats[len(found) - start :].tolist()
        start += reading.stride
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("total", [3, 8, 9, 16, 17, 39, 40])
@pytest.mark.parametrize("stride", [1, 4, 8])
def test_every_target_is_scored_once_as_by_hand(model, total, stride):
    reading = Reading(L, stride, 2 * L, batch=3)
    text = some_text(total + 1)
    chunks = list(scored_chunks(model, text, reading))
    assert [chunk.index for chunk in chunks] == list(range(reading.num_chunks(total)))
    assert [len(chunk.targets) for chunk in chunks[:-1]] == [2 * L] * (len(chunks) - 1)
    assert torch.equal(torch.cat([chunk.targets for chunk in chunks]), text[1:])
    assert torch.equal(torch.cat([chunk.previous for chunk in chunks]), text[:-1])
    assert all(len(chunk.nats) == len(chunk.targets) for chunk in chunks)
    nats = torch.cat([chunk.nats for chunk in chunks])
    assert torch.allclose(nats, by_hand(model, text, reading), atol=1e-5)
    tally = score(model, text, reading, TABLE)
    num_bytes = int(TABLE.bytes(text[1:], text[:-1]).sum())
    assert (tally.num_tokens, tally.num_bytes) == (total, num_bytes)
    assert math.isclose(tally.bits_per_byte, nats.sum().item() / math.log(2) / num_bytes, rel_tol=1e-12)


def test_published_counts():
    reading = Reading(2048, 64, 32_768)
    total = 62_021_632
    assert reading.num_chunks(total) == 1893
    assert total - 1892 * 32_768 == 24_576


def test_learning_rate_over_the_chunks():
    factors = {chunk: rate_factor(chunk, 1893) for chunk in (0, 93, 94, 1892)}
    assert factors == {0: 1 / 94, 93: 1.0, 94: 1.0, 1892: 0.0}
    assert math.isclose(rate_factor(993, 1893), 0.5)  # half-way down: 94 + 1798 / 2
    assert [rate_factor(chunk, 2) for chunk in (0, 1)] == [1.0, 1.0]  # too few for either


def scores(model, text, settings=SETTINGS, reading=READING):
    found = []
    score_then_train(model, text, reading, settings, TABLE, lambda chunk: found.append(chunk.nats))
    return found


def test_no_score_depends_on_what_comes_after_it(model):
    text = some_text(5 * 2 * L + 6)
    before = scores(model, text)
    assert len(before) == 6
    for place in (0, 2, 4):  # everything after this chunk is another text
        other = text.clone()
        other[1 + (place + 1) * 2 * L :] = some_text(len(text) - 1 - (place + 1) * 2 * L, seed=1)
        after = scores(model, other)
        assert all(torch.equal(x, y) for x, y in zip(before[: place + 1], after[: place + 1], strict=True))
        assert not torch.equal(before[place + 1], after[place + 1])


def test_within_a_chunk_no_score_depends_on_later_targets(model):
    text = some_text(3 * 2 * L + 1)
    before = torch.cat(scores(model, text))
    place = 2 * L + 5
    other = text.clone()
    other[place + 1] = (other[place + 1] + 1) % V  # target `place`
    after = torch.cat(scores(model, other))
    assert torch.equal(before[:place], after[:place]) and before[place] != after[place]


def test_without_a_learning_rate_or_epochs_it_is_plain_sliding(model):
    text = some_text(70)
    plain = [chunk.nats for chunk in scored_chunks(model, text, READING)]
    for settings in (TestTimeTraining(lr=0.0), TestTimeTraining(epochs=0)):
        assert all(torch.equal(x, y) for x, y in zip(scores(model, text, settings), plain, strict=True))


def test_learning_helps_on_text_that_repeats_and_leaves_the_model_alone(model):
    text = torch.cat([torch.tensor([0]), some_text(10, seed=2).repeat(16)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    learned = score_then_train(model, text, READING, SETTINGS, TABLE)
    assert learned.nats_per_token < score(model, text, READING, TABLE).nats_per_token - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert all(parameter.grad is None for parameter in model.parameters())


class Recorder(AR):
    """Notes what it is trained on, and how."""

    def __init__(self):
        super().__init__(lambda **options: GolfTransformer(**SIZES, **options), V, L)
        self.seen = []

    def __deepcopy__(self, memo):
        return self

    def loss(self, batch, draws: Draws):
        self.seen.append((self.training, batch.tokens.clone()))
        return super().loss(batch, draws)


def test_steps_and_what_they_are_on():
    torch.manual_seed(0)
    model, text = Recorder(), some_text(4 * 4 * L + 3)
    reading = Reading(L, 4, 4 * L)
    settings = TestTimeTraining(epochs=10, batch_sequences=32, freeze_blocks=0)
    optimizers, chunks = [], []
    original = torch.optim.SGD.step

    def step(self, *arguments):
        optimizers.append((id(self), self.param_groups[0]["lr"], len(self.state)))
        return original(self, *arguments)

    torch.optim.SGD.step = step
    try:
        score_then_train(model, text, reading, settings, TABLE, chunks.append)
    finally:
        torch.optim.SGD.step = original
    assert len(chunks) == 5 and len(model.seen) == len(optimizers) == 10 * 4  # an optimiser step an epoch; not the last chunk
    for index, (training, tokens) in enumerate(model.seen):
        assert training and torch.equal(tokens.flatten(), chunks[index // 10].targets)
    assert len({optimizer for optimizer, _, _ in optimizers}) == 1
    expected = [0.002 * rate_factor(chunk, 5) for chunk in range(4) for _ in range(10)]
    assert [rate for _, rate, _ in optimizers] == expected
    states = [state for _, _, state in optimizers]
    assert states[0] == 0 and min(states[1:]) > 0  # momentum is kept from chunk to chunk
    assert not model.training


def test_gradients_are_clipped_together(model):
    text = torch.cat([torch.tensor([0]), some_text(10, seed=2).repeat(5)])
    moved = []
    for clip in (1e-3, None):
        settings = TestTimeTraining(lr=1.0, momentum=0.0, epochs=1, batch_sequences=32, freeze_blocks=0, grad_clip=clip)
        found = scores(model, text, settings)
        plain = scores(model, text, TestTimeTraining(epochs=0))
        moved.append((found[1] - plain[1]).abs().max().item())
    assert 0 < moved[0] < 0.05 * moved[1]


def test_frozen_blocks_of_the_published_model():
    with torch.device("meta"):
        model = NativeFlow(
            lambda **options: GolfTransformer(length=2048, **options),
            1024,
            2048,
            flow=lambda **options: NativeFlowMatcher(**options),
        )
    trained = freeze(model, 2)
    assert sum(parameter.numel() for parameter in trained) == 22_800_036
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert sum(parameter.numel() for name, parameter in model.named_parameters() if name in frozen) == 4_730_916
    assert {name.split(".")[2] for name in frozen} == {"0", "1"}


def test_frozen_blocks_stay_as_they_are_while_the_others_learn(model, monkeypatch):
    monkeypatch.setattr(NativeFlow, "__deepcopy__", lambda self, memo: self, raising=False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    scores(model, some_text(6 * L + 1), TestTimeTraining(lr=0.2, epochs=1, freeze_blocks=2))
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert not any("blocks.0." in name or "blocks.1." in name for name in changed)
    assert {"backbone.input_table", "backbone.blocks.2.mlp_gain", "flow.gate"} <= changed


@pytest.mark.parametrize("sizes", [(8, 3, 16), (8, 4, 12), (8, 16, 16), (0, 0, 0)])
def test_parts_that_would_straddle_two_chunks_are_refused(sizes):
    with pytest.raises(ValueError, match="golf_eval: "):
        Reading(*sizes)


@pytest.mark.parametrize("options", [{"epochs": 1.5}, {"lr": "fast"}, {"lr": -1.0}, {"batch_sequences": 0}, {"momentum": None}])
def test_settings_that_are_no_numbers_are_named(options):
    with pytest.raises(ValueError, match=f"golf_eval.test_time_training.{next(iter(options))} must be"):
        check(TestTimeTraining, options, "golf_eval.test_time_training", given=["seed"])


def test_more_frozen_blocks_than_there_are(model):
    with pytest.raises(ValueError, match="freeze_blocks=4: the model has 3 blocks"):
        score_then_train(model, some_text(20), READING, TestTimeTraining(freeze_blocks=4), TABLE)


def test_a_text_without_a_target(model):
    with pytest.raises(ValueError, match="no token to score"):
        score(model, some_text(1), READING, TABLE)

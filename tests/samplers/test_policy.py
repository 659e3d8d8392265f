"""One policy for all samplers: exact against a dense computation, its effect on known laws, and no key that is ignored."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from chi_square import chi_square_limit
from every_algorithm import CASES, IDS, V, build

import flm.posterior
from flm.paths.mixture import MaskSource, Polynomial
from flm.posterior import TokenPosterior
from flm.samplers.autoregressive import AutoregressiveSampler
from flm.samplers.canvas import Canvas
from flm.samplers.masked import AncestralSampler
from flm.samplers.options import POLICY_OPTIONS, sampler_for
from flm.samplers.policy import Policy, Shaping
from flm.schema import signature_of
from flm.vocabulary_losses import cross_entropy

B, L, SIZE, D = 3, 4, 11, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Constant:
    """An offset that was there before."""

    values: torch.Tensor

    def chunk(self, part):
        return self.values[part].clone()


def some_posterior():
    normal = lambda *shape: torch.randn(*shape, generator=generator(1), dtype=torch.float64)  # noqa: E731
    return TokenPosterior(normal(B, L, D) * 3, normal(SIZE, D), normal(SIZE), 4.0, 0.8, Constant(normal(B * L, SIZE)))


def dense(posterior, policy, tau, tokens, known, editable):
    """(B, L, V) probabilities, term by term and token by token."""
    found = torch.zeros(B, L, SIZE, dtype=torch.float64)
    temperature = policy.temperature_end + (policy.temperature - policy.temperature_end) * (1 - tau) ** 1.5
    for b, i in itertools.product(range(B), range(L)):
        raw = posterior.table @ posterior.hidden[b, i] + posterior.bias
        logits = posterior.softcap * torch.tanh(raw / posterior.softcap) + posterior.offset.values[b * L + i]
        logits = logits / (posterior.temperature * temperature)
        for v in range(SIZE):
            count = sum(int(known[b, j] and tokens[b, j] == v) for j in range(L))
            logits[v] -= policy.frequency_penalty * torch.log(torch.tensor(1.0 + count, dtype=torch.float64))
            begins = editable[b, i] and (i == 0 or not editable[b, i - 1])
            if v in policy.suppress or (begins and v in policy.begin_suppress):
                logits[v] = -torch.inf
        order = logits.softmax(-1).argsort(descending=True)[: policy.top_k]
        p = logits.softmax(-1)[order]
        mass, kept = 0.0, 0
        while kept < len(order) and (policy.top_p is None or kept == 0 or mass < policy.top_p * p.sum()):
            mass, kept = mass + p[kept], kept + 1
        found[b, i, order[:kept]] = p[:kept] / p[:kept].sum()
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.6},
        {"temperature": 1.4, "temperature_end": 0.7},
        {"frequency_penalty": 1.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 4, "top_p": 0.8, "temperature": 2.0},
        {"suppress": [0, 4], "begin_suppress": [1, 2, 3]},
        {"temperature": 0.9, "temperature_end": 0.5, "frequency_penalty": 2.0, "top_k": 7, "top_p": 0.9, "suppress": [5]},
    ],
    ids=str,
)
def test_shaped_predictions_equal_the_dense_computation(options, monkeypatch):
    monkeypatch.setitem(flm.posterior.CHUNK_ELEMENTS, "cpu", 5 * SIZE)  # several chunks, that cut sequences
    posterior, policy, tau = some_posterior(), Policy(**options), 0.3
    editable = torch.tensor([[True] * 4, [False, True, True, False], [True, False, True, True]])
    canvas = Canvas(torch.full((B, L), 2), editable)
    tokens = torch.tensor([[2, 2, 7, 4], [5, 5, 5, 2], [SIZE, 1, 1, 9]])  # SIZE is a mask beyond the vocabulary
    known = torch.tensor([[True, True, True, False], [True, False, True, False], [False, True, True, True]])
    shaping = Shaping(policy, canvas)
    shaping.stands(tokens, known)
    shaped, want = shaping(posterior, tau), dense(posterior, policy, tau, tokens, known | ~editable, editable)
    torch.testing.assert_close(shaped.probabilities(), want, rtol=1e-10, atol=1e-14)
    table = torch.randn(SIZE, 3, generator=generator(4), dtype=torch.float64)
    torch.testing.assert_close(shaped.expected([table])[0], want @ table, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shaped.chunk(slice(3, 9)), want.flatten(0, 1)[3:9], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(shaped.log_prob(tokens % SIZE).exp(), want.gather(2, tokens[..., None] % SIZE)[..., 0])
    torch.testing.assert_close(shaped.entropy(), torch.special.entr(want).sum(-1))
    torch.testing.assert_close(shaped.rows(slice(1, 3)).probabilities(), want[1:], rtol=1e-10, atol=1e-14)
    assert torch.equal(shaped.argmax(), want.argmax(-1))
    assert (want.gather(2, shaped.draw(generator())[..., None]) > 0).all()
    # at a few positions, as samplers of masks ask
    at = torch.tensor([[False, True, False, True], [True, False, False, False], [False, True, True, False]])
    chosen = Constant(posterior.offset.values[at.flatten()])
    few = TokenPosterior(posterior.hidden[at][None], posterior.table, posterior.bias, 4.0, 0.8, chosen)
    torch.testing.assert_close(shaping(few, tau, at).probabilities()[0], want[at], rtol=1e-10, atol=1e-14)


def test_a_plain_policy_leaves_predictions_alone_and_losses_refuse_truncated_ones():
    posterior, canvas = some_posterior(), Canvas.blank(B, L)
    assert Shaping(Policy(), canvas)(posterior, 0.5) is posterior
    assert Policy(temperature_end=1.0).is_plain and not Policy(temperature_end=0.9).is_plain
    truncated = Shaping(Policy(top_k=2), canvas)(posterior, 0.5)
    with pytest.raises(AssertionError, match="truncated"):
        cross_entropy(truncated, canvas.tokens, torch.ones(B, L, dtype=torch.float64))


def test_annealing_has_its_ends_and_its_power():
    policy = Policy(temperature=1.0, temperature_end=0.8)
    assert policy.temperature_at(0.0) == 1.0 and policy.temperature_at(1.0) == 0.8
    assert policy.temperature_at(0.75) == pytest.approx(0.8 + 0.2 * 0.125)
    assert Policy(temperature=0.3).temperature_at(0.4) == 0.3


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3, "top_p": 0.5}, {"frequency_penalty": 3.0}, {"suppress": [0, 4, 7]}], ids=str
)
def test_at_temperature_0_all_mass_is_on_the_first_choice(options):
    """Of what the policy leaves at temperature 1; nothing is infinite, not a number, or left to the seed."""
    posterior, canvas = some_posterior(), Canvas.blank(B, L)
    shaped = Shaping(Policy(temperature=0, **options), canvas)
    tokens = torch.tensor([[2, 2, 7, 4], [5, 5, 5, 2], [0, 1, 1, 9]])
    shaped.stands(tokens)
    found = shaped(posterior, 0.3)
    want = dense(posterior, Policy(**options), 0.3, tokens, canvas.editable, canvas.editable).argmax(-1)
    assert torch.equal(found.probabilities(), torch.nn.functional.one_hot(want, SIZE).double())
    assert torch.equal(found.expected([torch.eye(SIZE).double()])[0], torch.nn.functional.one_hot(want, SIZE).double())
    for seed in range(3):
        assert torch.equal(found.draw(generator(seed)), want)
    cooled = Policy(temperature=1.0, temperature_end=0, **options)  # annealed to it
    assert torch.equal(Shaping(cooled, canvas)(posterior, 1.0).probabilities().argmax(-1), posterior_at_end(posterior, cooled))


def posterior_at_end(posterior, policy):
    """The first choice where no token stands yet."""
    nowhere = torch.zeros(B, L, dtype=torch.bool)
    plain = Policy(suppress=policy.suppress)
    return dense(posterior, plain, 1.0, torch.zeros(B, L).long(), nowhere, ~nowhere).argmax(-1)


# what order they write or take back in would be left to chance if all confidences were 1: theirs is that at temperature 1
BY_CONFIDENCE = ("top_probability", "top_margin", "low_entropy", "threshold", "low_confidence", "p2")


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_temperature_0_is_where_low_temperatures_lead(name):
    """For every sampler: so cold that nothing but the first choice is drawn gives the same texts, of the same noise."""
    algorithm = build(name, ()).eval()
    for solver in algorithm.samplers:
        options = ({"solver": solver} if solver else {}) | FURTHER.get(name, {})
        if "temperature" not in signature_of(algorithm.samplers[solver]).parameters:
            continue
        same = {"top_k": 1} if solver in BY_CONFIDENCE else {"temperature": 1e-7}
        written = [algorithm.generate(Canvas.blank(6, 8), 3, generator(1), **options, **o) for o in ({"temperature": 0}, same)]
        assert torch.equal(*written), solver


def test_the_penalty_of_the_source():
    """Logits (0, 0), counts (1, 0), lambda 1: (1/3, 2/3)."""
    posterior = TokenPosterior(torch.zeros(1, 2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64))
    shaping = Shaping(Policy(frequency_penalty=1.0), Canvas.from_pieces([[0], 1], 1))
    torch.testing.assert_close(shaping(posterior, 0.0).probabilities()[0, 1], torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))


class Independent:
    """A prediction that knows nothing: the same law at every position, asked from left to right or at masks."""

    source, schedule = MaskSource(3, 3), Polynomial()

    def __init__(self, p):
        self.logits = torch.tensor(p, dtype=torch.float64).log()

    def posterior(self, batch, length):
        return TokenPosterior(torch.ones(batch, length, 1, dtype=torch.float64), self.logits[:, None])

    def new_cache(self, capacity):
        return []

    def next_token(self, tokens, cache):
        return self.posterior(len(tokens), 1)

    def __call__(self, tokens, t):
        return self.posterior(*tokens.shape)


@pytest.mark.parametrize("kind", [AutoregressiveSampler, AncestralSampler])
def test_the_law_under_a_penalty_is_known(kind):
    """Three tokens written one after the other: each draw is from p_v (1 + count_v)^-lambda, normalised."""
    p, strength, length, count = [0.6, 0.3, 0.1], 1.5, 3, 20_000
    law = {}
    for text in itertools.product(range(3), repeat=length):
        law[text] = 1.0
        for i, token in enumerate(text):
            weights = [p[v] * (1 + text[:i].count(v)) ** -strength for v in range(3)]
            law[text] *= weights[token] / sum(weights)
    # enough steps for one token at a time: with more in a step the penalty does not know of the others
    tokens = kind(frequency_penalty=strength)(Independent(p), Canvas.blank(count, length), 600, generator(3))
    counts = torch.zeros(3, 3, 3, dtype=torch.float64).index_put(tuple(tokens.T), torch.ones(count).double(), accumulate=True)
    want = torch.tensor(list(law.values()), dtype=torch.float64).view(3, 3, 3)
    if kind is AncestralSampler:  # of all orders, each as likely
        want = sum(want.permute(order) for order in itertools.permutations(range(3))) / 6
    statistic = ((counts - count * want) ** 2 / (count * want)).sum().item()
    assert statistic < chi_square_limit(1e-4, 26)
    plain = torch.tensor(p).double()
    plain = plain[:, None, None] * plain[:, None] * plain
    assert ((counts - count * plain) ** 2 / (count * plain)).sum() > 1000  # no penalty would be seen


# strong enough to change a sample whatever else is drawn
VALUES = {
    "temperature": 0.05,
    "temperature_end": 0.05,
    "frequency_penalty": 30.0,
    "top_k": 1,
    "top_p": 0.01,
    "suppress": list(range(1, V - 1)),
    "begin_suppress": list(range(1, V - 1)),
}
# what a sampler of the embedding flow, whose estimate is no mean, takes where it draws alone
FURTHER = {"flow_lm": {"read_out": "categorical"}, "kl_flow_map": {"read_out": "argmax"}}


@pytest.mark.parametrize("name,overrides", CASES, ids=IDS)
def test_no_sampler_ignores_a_key(name, overrides):
    assert set(VALUES) == set(POLICY_OPTIONS)
    algorithm = build(name, overrides).eval()
    canvas, honoured = Canvas.blank(24, 8), 0
    for solver in algorithm.samplers:
        base = ({"solver": solver} if solver else {}) | FURTHER.get(name, {})
        taken = set(signature_of(algorithm.samplers[solver]).parameters)
        plain = algorithm.generate(canvas, 3, generator(1), **base)
        for key, value in VALUES.items():
            try:
                sampler_for(algorithm, base | {key: value}, "sampling")
            except ValueError as error:
                assert f"sampling.{key}" in str(error)
                assert key not in taken, "what is in the signature is taken"
                continue
            tokens = algorithm.generate(canvas, 3, generator(1), **base, **{key: value})
            assert not torch.equal(tokens, plain), f"{solver}: {key} is ignored"
            honoured += 1
            if key == "suppress":
                assert not torch.isin(tokens, torch.tensor(value)).any()
            elif key == "begin_suppress":
                assert not torch.isin(tokens[:, 0], torch.tensor(value)).any()
    assert honoured >= len(algorithm.samplers) * (0 if name == "flm_distill" else 6)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_the_ends_of_every_range_of_numbers_give_texts(name):
    """The smallest number above 0 and the largest that is taken: nothing overflows, and no mask is left."""
    algorithm, canvas = build(name, ()).float().eval(), Canvas.from_pieces([[5, 6], 3, [7], 2], 2)
    broken = []
    for module in algorithm.modules():
        if type(module) is torch.nn.Linear:
            module.register_forward_hook(lambda _, inputs, output: broken.append(not output.isfinite().all()))
    for solver in algorithm.samplers:
        base = ({"solver": solver} if solver else {}) | FURTHER.get(name, {})
        for key, parameter in signature_of(algorithm.samplers[solver]).parameters.items():
            if "float" not in str(parameter.annotation) or key == "grid":
                continue
            for value in (5e-324, 1e-30, 1.0, 1e6, 1e308):
                broken.clear()
                try:
                    sampler_for(algorithm, base | {key: value})
                except ValueError:
                    continue
                tokens = algorithm.generate(canvas, 3, generator(1), watched, **base, **{key: value})
                what = f"{solver}: {key}={value}"
                assert 0 <= tokens.min() and tokens.max() < V and torch.equal(canvas.fill(tokens), tokens), what
                assert not any(broken), what
    if name != "flm_distill":
        for options in ({"suppress": range(V)}, {"suppress": range(1, V), "begin_suppress": [0]}):
            with pytest.raises(
                ValueError, match="suppress and begin_suppress leave none of the model's 29 tokens|takes no|read_out"
            ):
                sampler_for(algorithm, {key: list(tokens) for key, tokens in options.items()}, "sampling")


def watched(moment):
    """What a film shows is numbers too."""
    assert moment.posterior.chunk(slice(0, 1)).isfinite().all()

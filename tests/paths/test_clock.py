"""The decoding-error clock against closed forms, tabulated 30-digit quadrature, simulation and its own inverse."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flm.paths.clock import DecodingErrorClock, IdentityClock

VOCAB_SIZES = (2, 5, 27, 1000, 30522, 50258, 151936)

# tau, then t at V = 30522, dtau/dt there, t at V = 50257, dtau/dt there, t at V = 50258
TIME_GOLDEN = """
0.0001 0.26128999 0.000923 0.30844236 0.000958 0.30844419
0.001 0.48308002 0.012642 0.51199150 0.014038 0.51199259
0.01 0.63114072 0.190916 0.64640741 0.207775 0.64640799
0.05 0.70693215 1.164825 0.71661100 1.247134 0.71661137
0.1 0.73594074 2.437317 0.74379440 2.592381 0.74379470
0.25 0.77348976 5.980472 0.77925048 6.306094 0.77925070
0.5 0.80448063 10.040038 0.80874701 10.510835 0.80874718
0.75 0.82809473 10.300129 0.83136525 10.724311 0.83136538
0.9 0.84501903 6.965162 0.84765182 7.223869 0.84765192
0.99 0.86762071 1.434103 0.86949981 1.479844 0.86949988
0.999 0.88050251 0.219937 0.88200082 0.226327 0.88200088
0.9999 0.88945679 0.029871 0.89071030 0.030683 0.89071034
"""

# V, t, tau, dtau/dt
TAU_GOLDEN = """
30522 0.1 0.0000187161 0.00025523
30522 0.3 0.0001431661 0.00133798
30522 0.5 0.0012441613 0.01640860
30522 0.7 0.0425935238 0.97769829
30522 0.8 0.4560969297 9.54316903
30522 0.84 0.8618010280 8.22875623
30522 0.88 0.9988841816 0.24128507
30522 0.9 0.9999977829 0.00095955
50257 0.1 0.0000117640 0.00016141
50257 0.6 0.0040645239 0.07347434
50257 0.78 0.2547662578 6.41220628
50257 0.82 0.6235166811 11.27203693
50257 0.86 0.9666229305 3.60425087
50257 0.9 0.9999965942 0.00145782
2 0.25 0.1863362842 0.97552589
5 0.5 0.3671235781 1.63658951
27 0.25 0.0333961733 0.22397593
27 0.75 0.8119739360 3.85175523
100 0.5 0.0731875933 0.57403655
1000 0.75 0.4110081882 5.89952425
"""


def rows(table: str) -> list[list[float]]:
    return [[float(x) for x in line.split()] for line in table.split("\n") if line]


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spread(count: int = 20000) -> torch.Tensor:
    """Readings all over [0, 1], also very close to both ends, sorted."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, count, generator=generator, dtype=torch.float64)
    tails = 10 ** (-15 * u[1]), 1 - 10 ** (-15 * u[2])
    return torch.cat([u[0], *tails, f64(0, 1e-12, 0.5, 1 - 1e-12, 1)]).sort().values


@pytest.mark.parametrize("column, vocab_size", [(1, 30522), (3, 50257), (5, 50258)])
def test_time_matches_30_digit_quadrature(column: int, vocab_size: int):
    golden = f64(*rows(TIME_GOLDEN)).T
    clock = DecodingErrorClock(vocab_size)
    t = clock.time(golden[0])
    # t is tabulated to 5e-9
    assert (t - golden[column]).abs().max() < 6e-9
    if column + 1 < len(golden):
        # and this is the error that rounding t makes where the rate is steepest in t (about 150 per unit)
        assert (clock.rate(t) - golden[column + 1]).abs().max() < 2e-6


def test_tau_and_rate_match_30_digit_quadrature():
    for vocab_size, t, tau, rate in rows(TAU_GOLDEN):
        clock = DecodingErrorClock(int(vocab_size))
        assert abs(clock.tau(f64(t)).item() - tau) < 1.5e-10 + 1e-9 * tau
        assert abs(clock.rate(f64(t)).item() - rate) < 6e-9 * max(1, rate)


def test_two_tokens_give_the_error_function():
    t = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.95
    m = t / (1 - t)
    clock = DecodingErrorClock(2)
    assert (clock.tau(t) - torch.erf(m / 2)).abs().max() < 1e-9
    exact_rate = torch.exp(-m * m / 4) / math.sqrt(math.pi) / (1 - t) ** 2
    assert (clock.rate(t) - exact_rate).abs().max() < 1e-8


def test_tau_is_the_accuracy_of_the_argmax_above_chance():
    vocab_size, count, t = 50, 40000, 0.6
    noise = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(2))
    state = (1 - t) * noise
    state[:, 7] += t
    accuracy = (state.argmax(-1) == 7).double().mean().item()
    expected = DecodingErrorClock(vocab_size).tau(f64(t)).item() * (vocab_size - 1) / vocab_size + 1 / vocab_size
    assert abs(accuracy - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_ends_are_exact(vocab_size: int):
    clock = DecodingErrorClock(vocab_size)
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor([0.0, 1.0], dtype=dtype)
        assert torch.equal(clock.tau(ends), ends)
        assert torch.equal(clock.time(ends), ends)
        outside = torch.tensor([-0.1, 1.1], dtype=dtype)
        assert torch.equal(clock.tau(outside), ends)
        assert torch.equal(clock.time(outside), ends)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_time_inverts_tau(vocab_size: int):
    clock = DecodingErrorClock(vocab_size)
    tau = spread()
    assert (clock.tau(clock.time(tau)) - tau).abs().max() < 2e-15
    # the other way round, where the clock moves at all
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    t = t[clock.rate(t) > 1e-5]
    assert len(t) > 4000
    assert (clock.time(clock.tau(t)) - t).abs().max() < 1e-10


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_both_directions_never_go_back(vocab_size: int):
    clock = DecodingErrorClock(vocab_size)
    grid = torch.linspace(0, 1, 100_003, dtype=torch.float64)
    tau = clock.tau(grid)
    assert tau.diff().min() >= -3e-16
    assert 0 <= tau.min() and tau.max() <= 1
    time = clock.time(spread())
    assert time.diff().min() >= 0
    assert 0 <= time.min() and time.max() <= 1
    assert 0.91 < clock.time(f64(1 - 1.2e-16)).item() < 0.94
    assert clock.rate(grid).min() >= 0


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_rate_is_the_derivative_of_tau(vocab_size: int):
    clock = DecodingErrorClock(vocab_size)
    t = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    h = 1e-5
    slope = (clock.tau(t + h) - clock.tau(t - h)) / (2 * h)
    assert (clock.rate(t) - slope).abs().max() < 1e-5
    # relatively too, far down both tails
    far = t[(t < 0.5) | ((t > 0.86) & (clock.rate(t) > 1e-4))]
    slope = (clock.tau(far + h) - clock.tau(far - h)) / (2 * h)
    # the difference quotient itself is off by h^2 times up to 900^2 / 6
    assert ((clock.rate(far) - slope) / slope).abs().max() < 5e-5


def test_large_vocabularies_spend_most_of_the_clock_in_a_narrow_window():
    clock = DecodingErrorClock(30522)
    low, high = clock.time(f64(0.01, 0.99)).tolist()
    assert 0.63 < low < 0.632 and 0.867 < high < 0.868
    t = torch.linspace(0.8, 0.84, 40001, dtype=torch.float64)
    rate = clock.rate(t)
    assert abs(rate.max().item() - 10.8156615) < 1e-6
    assert abs(t[rate.argmax()].item() - 0.81824) < 1e-5


def test_shape_and_dtype_follow_the_argument_and_float32_agrees_with_float64():
    clock = DecodingErrorClock(1000)
    x = torch.rand(3, 1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for method in (clock.tau, clock.time, clock.rate):
        wide, narrow = method(x), method(x.float())
        assert wide.shape == narrow.shape == x.shape
        assert wide.dtype == torch.float64 and narrow.dtype == torch.float32
        assert torch.equal(narrow, method(x.float().double()).float())
    assert clock.tau(f64(0.3)[0]).shape == ()
    assert clock.time(torch.empty(0)).shape == (0,)


def test_tables_keep_float64_when_the_parent_is_cast_and_stay_out_of_state_dicts():
    reference = DecodingErrorClock(27).time(f64(0.1, 1e-9, 1 - 1e-9))
    for cast in (lambda m: m.half(), lambda m: m.float(), lambda m: m.to(torch.bfloat16), lambda m: m.to("cpu")):
        parent = torch.nn.ModuleList([DecodingErrorClock(27), torch.nn.Linear(2, 2)])
        cast(parent)
        assert torch.equal(parent[0].time(f64(0.1, 1e-9, 1 - 1e-9)), reference)
        assert sorted(parent.state_dict()) == ["1.bias", "1.weight"]
    with torch.device("meta"):
        clock = DecodingErrorClock(29)  # not built before
    x = f64(0.1, 1e-9, 1 - 1e-9)
    assert (clock.tau(clock.time(x)) - x).abs().max() < 1e-15


class NoHostRoundTrip(TorchDispatchMode):
    """Fails on operations whose result the host must wait for."""

    waiting = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "is_nonzero"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.waiting:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_no_call_waits_for_the_device():
    clock = DecodingErrorClock(1000)
    x = torch.rand(5, dtype=torch.float64)
    with NoHostRoundTrip():
        for method in (clock.tau, clock.time, clock.rate):
            method(x)
            method(x.float())
        with pytest.raises(AssertionError, match="waits"):
            x.sum().item()


def test_identity_clock():
    clock = IdentityClock()
    x = spread(100).float().reshape(5, -1)
    assert torch.equal(clock.tau(x), x) and torch.equal(clock.time(x), x)
    assert torch.equal(clock.rate(x), torch.ones_like(x))
    assert torch.equal(clock.time(f64(-0.1, 1.1)), f64(0, 1))


def test_a_vocabulary_of_one_is_refused():
    with pytest.raises(ValueError, match="vocab_size"):
        DecodingErrorClock(1)

import math

import pytest
import torch

from flm.training.schedules import constant_warmup, cosine_decay, linear_warmdown


def rates(make, steps, base=2.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    schedule = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / base)
        optimizer.step()
        schedule.step()
    return found


def test_constant_warmup():
    assert rates(lambda o: constant_warmup(o, 4), 7) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert rates(lambda o: constant_warmup(o, 0), 2) == [1, 1]


def test_cosine_decay():
    found = rates(lambda o: cosine_decay(o, 2, 10, 0.1), 12)
    curve = [0.1 + 0.9 * (1 + math.cos(math.pi * (n - 2) / 8)) / 2 for n in range(2, 10)]
    assert found == pytest.approx([0.5, 1.0, *curve, 0.1, 0.1])


def test_linear_warmdown():
    found = rates(lambda o: linear_warmdown(o, 2, 10, 0.5), 12)
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    assert rates(lambda o: linear_warmdown(o, 0, 4), 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(lambda o: linear_warmdown(o, 0, 4, 0.01), 5) == pytest.approx([1, 1, 1, 1, 0])  # one step at least


@pytest.mark.parametrize("arguments", [(5, 4), (2, 10, 9), (2, 10, 0), (2, 10, 4, 1.5)])
def test_what_does_not_fit_is_refused(arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="lr_scheduler"):
        linear_warmdown(optimizer, *arguments)

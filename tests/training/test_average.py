import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from flm.training.average import Average


def net(dtype=torch.float32):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).to(dtype)
    layer[1].bias.requires_grad_(False)
    return layer


def test_it_is_the_recursion_with_warm_up():
    module = net()
    average = Average(module, 0.5)
    expected = module[0].weight.detach().double().clone()
    for n in range(1, 30):
        with torch.no_grad():
            module[0].weight.normal_()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * module[0].weight.detach().double()
        average.update(module)
        torch.testing.assert_close(average.weights["0.weight"].double(), expected, atol=1e-6, rtol=1e-6)
    assert (1 + 29) / (10 + 29) > 0.5 > 2 / 11  # both branches were walked
    assert average.updates == 29 and "1.bias" not in average.weights


def test_a_slow_average_of_half_precision_weights_still_moves():
    module = net(torch.bfloat16)
    average = Average(module, 0.9999)
    average.updates = 10**7
    with torch.no_grad():
        module[0].weight.fill_(1.0)
    before = average.weights["0.weight"].clone()
    average.update(module)
    moved = average.weights["0.weight"] - before
    torch.testing.assert_close(moved, 1e-4 * (1 - before), atol=2e-7, rtol=1e-2)
    assert moved.abs().min() > 0


def test_applied_swaps_and_restores_bit_for_bit():
    module = net()
    average = Average(module, 0.9)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    online = {k: v.clone() for k, v in module.state_dict().items()}
    versions = [p._version for p in module.parameters() if p.requires_grad]
    with pytest.raises(RuntimeError, match="inside"), average.applied(module):
        assert average.in_place
        for name, weight in average.weights.items():
            assert torch.equal(module.get_parameter(name), weight)
        assert torch.equal(module[1].bias, online["1.bias"])
        # whatever caches by version must notice, both ways
        inside = [p._version for p in module.parameters() if p.requires_grad]
        assert all(b > a for a, b in zip(versions, inside, strict=True))
        raise RuntimeError("inside")
    assert not average.in_place
    for k, v in module.state_dict().items():
        assert torch.equal(v, online[k])
    assert all(p._version > b for p, b in zip([p for p in module.parameters() if p.requires_grad], inside, strict=True))


def test_load_continues_and_checks():
    module = net()
    average = Average(module, 0.9)
    stored = {k: torch.randn_like(v) for k, v in average.weights.items()}
    average.load(stored, 7)
    assert average.updates == 7 and all(torch.equal(average.weights[k], v) for k, v in stored.items())
    with pytest.raises(ValueError, match="other parameters"):
        average.load({k: v for k, v in stored.items() if k != "0.bias"}, 7)
    with pytest.raises(ValueError, match="other parameters"):
        average.load(stored | {"0.bias": torch.zeros(5)}, 7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_split_over_processes_it_stays_in_fp32(dtype):
    """The same numbers as unsplit, for parameters of any precision."""
    whole, module = net(dtype), net(dtype)
    averages = Average(whole, 0.9), Average(module, 0.9)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        averages[1].split_like(module)
        for _ in range(3):
            with torch.no_grad():
                whole[0].weight.add_(0.01)
                module[0].weight.add_(0.01)
            averages[0].update(whole)
            averages[1].update(module)
        found = averages[1].weights["0.weight"].full_tensor()
        assert found.dtype == torch.float32 and torch.equal(found, averages[0].weights["0.weight"])
        with averages[1].applied(module):
            assert torch.equal(module[0].weight.full_tensor(), averages[0].weights["0.weight"].to(dtype))
    finally:
        torch.distributed.destroy_process_group()


def test_average_and_clipping_take_few_operations_however_many_parameters_there_are():
    """Each is a launch on a GPU, where clipping asks for fused ones by itself; a model of twelve blocks has 130 parameters."""

    class Calls(TorchDispatchMode):
        names: list[str]

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    found = []
    for depth in (2, 9):
        module = nn.Sequential(*[nn.Linear(3, 3) for _ in range(depth)])
        average = Average(module, 0.9)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        calls = Calls()
        calls.names = []
        with calls:
            average.update(module)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0, foreach=True)
        found.append([name for name in calls.names if "detach" not in name])
    assert "aten::_foreach_lerp_" in str(found) and "aten::_foreach_norm" in str(found)
    assert len(found[0]) == len(found[1]) <= 12

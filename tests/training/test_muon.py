import copy

import pytest
import torch
from torch import nn

from flm.training.optimizers import AdamW, MuonWithAdamW


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])

    def loss(self, ids):
        x = self.table(ids)
        return ((self.blocks[1](self.blocks[0](x).tanh()) - x.roll(1, 0)) ** 2).mean()


def train(net, optimizer, first, last):
    for n in range(first, last):
        ids = torch.randint(7, (9,), generator=torch.Generator().manual_seed(n))
        optimizer.zero_grad()
        net.loss(ids).backward()
        optimizer.step()


def test_it_is_muon_on_the_blocks_and_adamw_elsewhere():
    net = Net()
    twin = copy.deepcopy(net)
    both = MuonWithAdamW(net.named_parameters(), lr=0.02, adamw_lr=0.01, weight_decay=0.1)
    matrices = [block.weight for block in twin.blocks]
    rest = [twin.table.weight, *(block.bias for block in twin.blocks)]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    adamw = AdamW(rest, lr=0.01, weight_decay=0.1)
    for n in range(5):
        ids = torch.randint(7, (9,), generator=torch.Generator().manual_seed(n))
        for model, optimizers in ((net, [both]), (twin, [muon, adamw])):
            model.zero_grad()
            model.loss(ids).backward()
            for optimizer in optimizers:
                optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(net.table.weight, Net().table.weight)


def test_state_round_trip_is_exact(tmp_path):
    whole = Net()
    train(whole, optimizer := MuonWithAdamW(whole.named_parameters()), 0, 3)
    torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "x.pt")
    train(whole, optimizer, 3, 6)
    again = Net()
    resumed = MuonWithAdamW(again.named_parameters())
    weights, state = torch.load(tmp_path / "x.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(again, resumed, 3, 6)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_schedules_reach_both():
    net = Net()
    optimizer = MuonWithAdamW(net.named_parameters(), lr=0.02, adamw_lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.0 if n else 1.0)
    train(net, optimizer, 0, 1)
    schedule.step()
    frozen = copy.deepcopy(net.state_dict())
    train(net, optimizer, 1, 3)
    assert all(torch.equal(v, frozen[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("muon_on", ["nowhere", ""])
def test_a_pattern_that_matches_nothing_is_refused(muon_on):
    net = nn.Linear(3, 3, bias=False)
    with pytest.raises(ValueError, match="optim.muon_on"):
        MuonWithAdamW(net.named_parameters(), muon_on=muon_on)


def grouped(net, **options):
    return MuonWithAdamW(net.named_parameters(), lr=0.02, adamw_lr=0.01, weight_decay=0.04, **options)


def test_parts_of_names_choose_optimiser_and_rate():
    net = Net()
    twin = copy.deepcopy(net)
    both = grouped(net, muon_on=["blocks."], muon_not=["blocks.1"], adamw_lrs={"table": 0.035})
    assert [[p.shape for p in group["params"]] for group in both.param_groups] == [[(6, 4)], [(6,), (4, 6), (4,)], [(7, 4)]]
    own = torch.optim.Muon([twin.blocks[0].weight], lr=0.02, weight_decay=0.04, momentum=0.95)
    rest = AdamW([twin.blocks[0].bias, *twin.blocks[1].parameters()], lr=0.01, weight_decay=0.04)
    table = AdamW([twin.table.weight], lr=0.035, weight_decay=0.04)
    for n in range(5):
        ids = torch.randint(7, (9,), generator=torch.Generator().manual_seed(n))
        for model, optimizers in ((net, [both]), (twin, [own, rest, table])):
            model.zero_grad()
            model.loss(ids).backward()
            for optimizer in optimizers:
                optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_momentum_walks_its_line_and_resumes_on_it(tmp_path):
    net, seen = Net(), []
    optimizer = grouped(net, momentum=0.99, momentum_start=0.92, momentum_steps=4)
    worker = optimizer._muon.step
    optimizer._muon.step = lambda: (seen.append(optimizer.param_groups[0]["momentum"]), worker())
    train(net, optimizer, 0, 3)
    torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "x.pt")
    train(net, optimizer, 3, 6)
    assert seen == pytest.approx([0.92, 0.9375, 0.955, 0.9725, 0.99, 0.99])
    again = Net()
    resumed = grouped(again, momentum=0.99, momentum_start=0.92, momentum_steps=4)
    weights, state = torch.load(tmp_path / "x.pt", weights_only=True)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(again, resumed, 3, 6)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_rate_or_a_line_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="optim.adamw_lrs: .'nowhere'. match"):
        grouped(Net(), adamw_lrs={"table": 0.1, "nowhere": 0.1})
    with pytest.raises(ValueError, match="optim.momentum_steps=0"):
        grouped(Net(), momentum_start=0.9)

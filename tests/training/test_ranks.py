"""Two processes, under DDP and FSDP2, against one that accumulates. One pair of processes does everything."""

from pathlib import Path

import pytest
import ranks
import torch
from ranks import BATCH, NAMES, STEPS, STRATEGIES, VALIDATION_BATCHES, Blocks, Data, fit, new_module
from toy import make_trainer
from two_processes import free_ports, run_two

from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.draws import Draws, mix_seed
from flm.training.checkpointing import CheckpointEvery
from flm.training.module import VALIDATION
from flm.training.optimizers import MuonWithAdamW


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(folder):
    found = {}
    for name in NAMES:
        saving = [CheckpointEvery(folder / "one", 2)] if name == "flm" else []
        found[name] = fit(folder, name, callbacks=saving, accumulate_grad_batches=2)
    return found


@pytest.fixture(scope="module")
def two(one, folder):
    run_two(ranks.work, folder, free_ports(1)[0])
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_close(a, b, atol=1e-5):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_two_processes_train_as_one_that_accumulates(one, two, kind, name):
    alone, pair = one[name], [process[kind, name] for process in two]
    # Lightning reports a loss divided by the accumulation
    expected = torch.tensor(alone["losses"]).view(STEPS, 2).sum(1)
    assert expected.min() < 0.999 * expected.max()  # something was learned that could have been learned wrongly
    torch.testing.assert_close(torch.tensor([p["losses"] for p in pair]).mean(0), expected, atol=1e-5, rtol=0)
    for process in pair:
        assert process["step"] == STEPS
        assert_close(process["weights"], alone["weights"])
        assert_close(process["average"], alone["average"])
    if kind == "fsdp2":  # what is split is not kept whole
        assert pair[0]["local"] + pair[1]["local"] == one[name]["local"] and pair[0]["local"] < 0.6 * one[name]["local"]


def test_blocks_that_are_computed_again_train_the_same(two):
    """Every other block makes its activations anew in the backward pass, its weights gathered once more; dropout too."""
    for process in two:
        kept, again = process["fsdp2", "flm"], process["recomputed"]
        assert kept["losses"] == again["losses"] and kept["reports"] == again["reports"]
        for kind in ("weights", "average"):
            assert all(torch.equal(again[kind][name], value) for name, value in kept[kind].items())
        assert again["local"] == kept["local"]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_noise_is_each_sequences_own_and_times_are_shared_out(two, kind):
    first, second = (process[kind, "flm"] for process in two)
    drawn = torch.cat(first["noise"] + second["noise"])
    assert len(drawn.unique(dim=0)) == 2 * STEPS * BATCH
    for a, b in zip(first["times"], second["times"], strict=True):
        strata = (torch.cat([a, b]) * 2 * BATCH).long()
        assert strata.sort().values.tolist() == list(range(2 * BATCH))


@pytest.mark.parametrize("kind", STRATEGIES)
def test_validation_counts_tokens_of_all_processes_with_the_average(two, kind):
    # the second process's batches are mostly padding, and so weigh less
    twin = new_module("flm").algorithm.eval()
    average = two[0][kind, "flm"]["average"]
    nats = tokens = 0.0
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(average[name])
        for rank in range(2):
            for index in range(VALIDATION_BATCHES):
                batch = Blocks(1000, 1000 + VALIDATION_BATCHES, [], rank, 2)[index]
                start = (2 * index + rank) * BATCH
                loss = twin.loss(batch, Draws(mix_seed(3, VALIDATION), places=range(start, start + BATCH)))
                nats += float((loss.per_sequence * batch.weight.sum(1)).sum())
                tokens += float(batch.weight.sum())
    for process in two:
        assert process[kind, "flm"]["reports"][-1] == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", STRATEGIES)
def test_samples_are_drawn_by_both_and_known_to_both(one, two, kind, name):
    for ours, theirs, alone in zip(*(p[kind, name]["samples"] for p in two), one[name]["samples"], strict=True):
        assert torch.equal(ours, theirs) and ours.shape == alone.shape == (3, ranks.LENGTH)
        assert not torch.equal(ours[0], ours[2])  # two of the first process, one of the second
        if name != "ar":  # it draws position by position, so its numbers depend on how many it draws for
            assert torch.equal(ours[0], alone[0])  # the stream and the weights of the first process are those of one alone


def test_a_split_run_resumes_on_one_process(one, two, folder):
    resumed = fit(folder, "flm", path=folder / "fsdp2" / "flm" / "step_0000002.ckpt", accumulate_grad_batches=2)
    assert_close(resumed["weights"], one["flm"]["weights"])
    assert_close(resumed["average"], one["flm"]["average"])


def test_a_run_of_one_process_resumes_split(one, two):
    for process in two:
        assert process["resumed"]["step"] == STEPS and len(process["resumed"]["losses"]) == 2
        assert_close(process["resumed"]["weights"], one["flm"]["weights"])
        assert_close(process["resumed"]["average"], one["flm"]["average"])


def test_the_file_of_a_split_run_is_one_like_any_other(one, two, folder):
    split, plain = (read_checkpoint(folder / kind / "flm" / "last.ckpt") for kind in ("fsdp2", "ddp"))
    assert_close(split.state, plain.state)
    assert_close(split.average, one["flm"]["average"])
    algorithm, _ = load_algorithm(folder / "fsdp2" / "flm" / "last.ckpt")
    assert_close(dict(algorithm.named_parameters()), {k: torch.nn.Parameter(v) for k, v in split.average.items()})


def test_forward_mode_derivatives_of_a_split_network(two, folder):
    alone = fit(folder, "lagrangian", accumulate_grad_batches=2, steps=2)
    expected = torch.tensor(alone["losses"]).view(2, 2).sum(1)
    found = torch.tensor([process["lagrangian"]["losses"] for process in two]).mean(0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert_close(two[1]["lagrangian"]["weights"], alone["weights"])
    assert sum(process["lagrangian"]["local"] for process in two) == alone["local"]  # split all the same


def test_muon_on_split_matrices(two, folder):
    alone = fit(folder, "flm", optimizer=MuonWithAdamW, accumulate_grad_batches=2)
    start = dict(new_module("flm").algorithm.named_parameters())
    matrices = [name for name, weight in alone["weights"].items() if ".blocks." in name and weight.ndim == 2]
    assert len(matrices) == 10
    for name in matrices:
        moved, other = (found["weights"][name] - start[name].detach() for found in (alone, two[0]["muon"]))
        # the sum over two halves of the batch is rounded otherwise, and the orthogonalisation works in bf16
        assert float((moved - other).norm()) < 0.01 * float(moved.norm()), name


def test_low_precision_gathers_change_little(one, two):
    losses = torch.tensor([p["bf16"]["losses"] for p in two]).mean(0)
    expected = torch.tensor(one["flm"]["losses"]).view(STEPS, 2).sum(1)
    torch.testing.assert_close(losses, expected, atol=5e-3, rtol=0)


def test_a_signal_to_one_process_stops_both_at_the_same_step_with_a_file(two, folder):
    # noticed after step 1 was made to step 2, agreed on one later
    assert [process["stopped"]["step"] for process in two] == [3, 3]
    assert read_checkpoint(folder / "stopped" / "last.ckpt").step == 3


def test_a_full_disk_ends_all_processes_with_one_line(two, folder):
    for process in two:
        assert "No space left on device" in process["full"] and "\n" not in process["full"]
        assert process["full"].count("step_0000001.ckpt") == 1  # the last good one
    assert read_checkpoint(folder / "full" / "last.ckpt").step == 1


def test_targets_from_the_average_are_refused_where_it_is_split():
    module = new_module("fmlm")
    module.algorithm.averaged_targets = True
    module.algorithm.averaged_weights = None  # as under FSDP2
    trainer = make_trainer(Path("."), 1)
    with pytest.raises(ValueError, match="averaged_targets=true needs a whole average.*strategy=fsdp2"):
        trainer.fit(module, datamodule=Data())

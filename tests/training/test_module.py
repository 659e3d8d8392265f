import copy

import pytest
import torch
from lightning.pytorch import Callback
from toy import BATCH, ToyAlgorithm, ToyData, assert_identical, everything, make_batch, make_module, make_trainer

from flm.checkpoints.load import read_checkpoint
from flm.draws import Draws, mix_seed
from flm.training.checkpointing import CheckpointEvery
from flm.training.generation import SampleEvery
from flm.training.module import VALIDATION

VALIDATING = dict(limit_val_batches=1.0, val_check_interval=3)


def decode(tokens):
    return [" ".join(map(str, row)) for row in tokens.tolist()]


def run(tmp_path, steps=6, callbacks=(), module=None, **arguments):
    module = module or make_module()
    make_trainer(tmp_path, steps, callbacks=list(callbacks), **arguments).fit(module, datamodule=ToyData())
    return module


def test_validation_and_sampling_leave_training_bit_identical(tmp_path):
    plain = everything(run(tmp_path))
    assert_identical(everything(run(tmp_path, **VALIDATING)), plain)
    sampling = SampleEvery(decode, tmp_path / "samples", count=2, steps=1)
    assert_identical(everything(run(tmp_path, callbacks=[sampling], **VALIDATING)), plain)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step_0000003.txt", "step_0000006.txt"]


def test_the_seed_reaches_noise_and_dropout(tmp_path):
    losses = {}
    for seed, dropout in ((3, 0.2), (4, 0.2), (3, 0.0)):
        module = make_module()
        module.seed = seed
        module.algorithm.backbone.blocks[2].p = dropout
        run(tmp_path, 1, module=module)
        losses[seed, dropout] = float(module.trainer.callback_metrics["train/loss_nats_per_token"])
    assert len(set(losses.values())) == 3


def test_the_global_stream_is_new_for_each_seed_step_and_share(tmp_path):
    drawn = {}
    for seed, repeat in ((3, 0), (3, 1), (4, 0)):
        module = make_module()
        module.seed, loss = seed, module.algorithm.loss
        found = drawn[seed, repeat] = []

        def spy(batch, draws, loss=loss, found=found):
            found.append(float(torch.rand((), dtype=torch.float64)))
            return loss(batch, draws)

        module.algorithm.loss = spy
        torch.manual_seed(repeat)
        run(tmp_path, 3, module=module, accumulate_grad_batches=2)
    assert drawn[3, 0] == drawn[3, 1]
    assert len(set(drawn[3, 0]) | set(drawn[4, 0])) == 12


def test_samples_are_of_the_average_and_a_function_of_seed_and_step(tmp_path):
    seen = []

    class Spy(SampleEvery):
        def on_validation_end(self, trainer, pl_module):
            generate = pl_module.algorithm.generate

            def spying(*args, **options):
                seen.append(pl_module.algorithm.backbone.out.weight.detach().clone())
                assert options == {"scale": 2.0} and not pl_module.algorithm.training
                return generate(*args, **options)

            pl_module.algorithm.generate = spying
            super().on_validation_end(trainer, pl_module)
            del pl_module.algorithm.generate

    texts = []
    for name in "ab":
        torch.manual_seed(hash(name))
        options = dict(every_n_validations=2, count=3, steps=1, length=5, options={"scale": 2.0})
        callback = Spy(decode, tmp_path / name, **options)
        module = run(tmp_path, callbacks=[callback], **VALIDATING)
        texts.append((tmp_path / name / "step_0000006.txt").read_text())
        assert len(list((tmp_path / name).iterdir())) == 1  # the second of two validations
        assert torch.equal(seen[-1], module.average.weights["backbone.out.weight"])
        assert not torch.equal(seen[-1], module.algorithm.backbone.out.weight)
    assert texts[0] == texts[1] and texts[0].count("--- sample") == 3
    assert len(texts[0].splitlines()[1].split()) == 5


def test_validation_is_the_average_on_fixed_noise(tmp_path):
    module = run(tmp_path, 3, **VALIDATING)
    logged = module.trainer.callback_metrics
    twin = copy.deepcopy(module.algorithm).eval()
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if p.requires_grad:
                p.copy_(module.average.weights[name])
        nats, tokens, by_tau = 0.0, 0.0, {}
        for index in range(3):
            batch = make_batch(1000 + index)
            loss = twin.loss(batch, Draws(mix_seed(3, VALIDATION), places=range(index * BATCH, (index + 1) * BATCH)))
            for value, tau, count in zip(loss.per_sequence, loss.tau, batch.weight.sum(1), strict=True):
                nats, tokens = nats + float(value * count), tokens + float(count)
                bucket = by_tau.setdefault(int(tau * 10), [0.0, 0.0])
                bucket[0] += float(value * count)
                bucket[1] += float(count)
    assert float(logged["val/denoising_ce_nats_per_token"]) == pytest.approx(nats / tokens, rel=1e-6)
    keys = {k for k in logged if k.startswith("val/denoising_ce_nats_tau_")}
    assert keys == {f"val/denoising_ce_nats_tau_0.{i}-{(i + 1) / 10:.1f}" for i in by_tau}
    for i, (n, t) in by_tau.items():
        assert float(logged[f"val/denoising_ce_nats_tau_0.{i}-{(i + 1) / 10:.1f}"]) == pytest.approx(n / t, rel=1e-6)
    # unigram entropy times (1 - tau), at the centres
    p = torch.arange(1, 12).double() / 66
    entropy = float(-(p * p.log()).sum())
    assert float(logged["val/context_free_ce_nats_tau_0.2-0.3"]) == pytest.approx(entropy * 0.75)
    weights = torch.tensor([by_tau.get(i, [0, 0])[1] for i in range(10)], dtype=torch.float64)
    centres = (torch.arange(10).double() + 0.5) / 10
    expected = float((weights * entropy * (1 - centres)).sum() / weights.sum())
    assert float(logged["val/context_free_ce_nats_per_token"]) == pytest.approx(expected)


def test_validation_of_unchanged_weights_repeats_itself(tmp_path):
    module = run(tmp_path, 2, module=make_module(lr=0.0), **(VALIDATING | {"val_check_interval": 1}))
    first = module.report
    module.trainer.validate(module, datamodule=ToyData(), verbose=False)
    assert module.report == first and module.report.by_tau is not first.by_tau


def test_without_a_clock_there_is_one_number(tmp_path):
    module = run(tmp_path, 3, module=make_module(clock=False), **VALIDATING)
    found = {k for k in module.trainer.callback_metrics if k.startswith("val/")}
    assert found == {"val/denoising_ce_nats_per_token"}


def test_files_written_at_validation_hold_the_trained_weights(tmp_path):
    online = {}

    class Save(Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "val.ckpt")

        def on_train_batch_end(self, trainer, pl_module, *_):
            online["out"] = pl_module.algorithm.backbone.out.weight.detach().clone()

    module = run(tmp_path, 3, [Save()], **VALIDATING)
    checkpoint = read_checkpoint(tmp_path / "val.ckpt")
    assert torch.equal(checkpoint.state["backbone.out.weight"], online["out"])
    assert torch.equal(checkpoint.average["backbone.out.weight"], module.average.weights["backbone.out.weight"])
    assert not torch.equal(checkpoint.average["backbone.out.weight"], online["out"])
    assert checkpoint.step == 3 and checkpoint.tokenizer == {"kind": "toy"}


def test_saving_while_the_average_is_in_place_is_refused(tmp_path):
    module = run(tmp_path, 1)
    with module.average_weights(), pytest.raises(AssertionError):
        module.trainer.save_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_weights(tmp_path, accumulate):
    module = make_module(poison=5 * accumulate - 1)  # the fifth step, number 4
    with pytest.raises(ValueError, match=r"not finite at step 4: .*step_0000004.ckpt"):
        run(tmp_path, 8, [CheckpointEvery(tmp_path, 2)], module, accumulate_grad_batches=accumulate)
    assert all(bool(torch.isfinite(p).all()) for p in module.algorithm.parameters())
    assert read_checkpoint(tmp_path / "last.ckpt").step == 4


def test_a_loss_that_is_no_number_from_the_start(tmp_path):
    with pytest.raises(ValueError, match="step 0: .*none, nothing was saved yet"):
        run(tmp_path, 2, [CheckpointEvery(tmp_path, 2)], make_module(poison=0))


def test_only_trainable_parameters_are_trained_and_averaged(tmp_path):
    module = run(tmp_path, 2)
    optimized = {id(p) for g in module.trainer.optimizers[0].param_groups for p in g["params"]}
    named = dict(module.algorithm.named_parameters())
    assert {n for n, p in named.items() if id(p) in optimized} == set(named) - {"backbone.frozen"}
    assert set(module.average.weights) == set(named) - {"backbone.frozen"}


def test_the_average_counts_optimiser_steps_and_its_absence_is_allowed(tmp_path):
    assert run(tmp_path, 3, accumulate_grad_batches=2).average.updates == 3
    for off in (None, 0):
        module = run(tmp_path, 3, module=make_module(ema=off), **VALIDATING)
        assert module.average is None and module.report.mean > 0


def test_metrics_of_the_loss_are_logged(tmp_path):
    logged = run(tmp_path, 1).trainer.callback_metrics
    assert float(logged["train/half"]) == pytest.approx(float(logged["train/loss_nats_per_token"]) / 2)


def test_validation_shares_are_counted_by_token(tmp_path):
    # sequences with half of their tokens masked weigh half
    module = run(tmp_path, 3, **VALIDATING)
    assert float(module._tally.sums[1].sum()) == 3 * (BATCH * 6 - 3)


class Moving(ToyAlgorithm):
    """Its reference depends on its weights."""

    def context_free_loss(self, token_counts, tau, draws):
        return self.backbone.out.weight.double().square().sum().expand(tau.shape)


@pytest.mark.parametrize("fixed", [True, False])
def test_a_reference_belongs_to_the_weights_that_were_validated(tmp_path, fixed):
    """Computed again at each validation where it depends on the weights, and with their average, as the loss beside it."""
    module = make_module()
    module.algorithm.__class__, module.algorithm.context_free_has_weights = Moving, not fixed
    seen = []

    class Watch(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(pl_module.report.context_free[0])

    run(tmp_path, 4, [Watch()], module, limit_val_batches=1, val_check_interval=2)
    with module.average_weights():
        averaged = module.algorithm.backbone.out.weight.double().square().sum().item()
    raw = module.algorithm.backbone.out.weight.double().square().sum().item()
    assert len(seen) == 2 and averaged != raw
    if fixed:
        assert seen[0] == seen[1] != averaged
    else:
        assert seen[1] == pytest.approx(averaged, rel=1e-12) and seen[0] != seen[1]

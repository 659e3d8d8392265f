import sys

import torch
from toy import ToyData, make_module, make_trainer

from flm.algos.algorithm import Loss
from flm.training.checkpointing import CheckpointEvery
from flm.training.progress import PrintCrossEntropy, StepProgressBar, print_report
from flm.training.throughput import Throughput
from flm.training.validation import Tally


def test_the_bar_counts_optimiser_steps_of_the_whole_run(tmp_path, monkeypatch):
    seen = []

    class Watch(StepProgressBar):
        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            bar = self.train_progress_bar
            seen.append((bar.n, bar.total, bar.initial, bar.format_dict["postfix"]))

    class Terminal:
        written = ""

        def write(self, text):
            self.written += text

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    shared = dict(accumulate_grad_batches=2, enable_progress_bar=True)
    make_trainer(tmp_path, 3, callbacks=[CheckpointEvery(tmp_path, 3), Watch(refresh_rate=1)], **shared).fit(
        make_module(), datamodule=ToyData()
    )
    assert [s[:3] for s in seen] == [(0, 3, 0), (1, 3, 0), (1, 3, 0), (2, 3, 0), (2, 3, 0), (3, 3, 0)]
    seen.clear()
    make_trainer(tmp_path, 5, callbacks=[Throughput(), Watch(refresh_rate=1)], **shared).fit(
        make_module(), datamodule=ToyData(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert [s[:3] for s in seen] == [(3, 5, 3), (4, 5, 3), (4, 5, 3), (5, 5, 3)]
    assert "nats/token=" in seen[-1][3] and "tokens/s=" in seen[-1][3]
    assert "5/5" in terminal.written and "Training" in terminal.written


def test_a_file_gets_lines(tmp_path, monkeypatch, capsys):
    """At most one in so many seconds, and the last step's; nothing is overwritten in place."""
    arguments = dict(enable_progress_bar=True, callbacks=[StepProgressBar(), Throughput()])
    make_trainer(tmp_path, 5, **arguments).fit(make_module(), datamodule=ToyData())
    out = capsys.readouterr().out
    assert "\r" not in out and "it/s" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("step ")]
    assert line.startswith("step 5 of 5, nats/token ") and line.endswith(", 0 s left")
    monkeypatch.setattr(StepProgressBar, "LINE_SECONDS", 0.0)
    make_trainer(tmp_path, 3, enable_progress_bar=True, callbacks=[StepProgressBar()]).fit(make_module(), datamodule=ToyData())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1", "2", "3"]


def test_the_table_has_both_columns(tmp_path, capsys):
    module = make_module()
    tally = Tally()
    sums = torch.tensor([3 * 1.25, 2.5])
    tally.add(Loss(sums.sum(), sums, torch.tensor([3, 1]), torch.tensor([0.45, 0.95])))
    module.report = tally.report(torch.arange(10.0))
    module.algorithm.validation_says = "of toys"
    make_trainer(tmp_path, 1, callbacks=[PrintCrossEntropy()]).fit(module, datamodule=ToyData())
    lines = capsys.readouterr().out.splitlines()
    assert "validation: denoising_ce_nats_per_token by place on the clock (of toys)" in lines
    rows = {line.split()[1]: line.split() for line in lines if "│" in line}
    assert rows["0.4-0.5"][3] == "1.2500" and rows["0.4-0.5"][5] == "4.0000"
    assert rows["0.0-0.1"][3] == "-"
    assert rows["mean"][3] == "1.5625" and rows["mean"][5] == "5.2500"
    assert not any("nothing learned" in line for line in lines)
    module.report = tally.report(torch.tensor([1.0] * 5 + [2.515] * 5))  # of the two that were seen one is 0.6% below
    print_report(module.report, "")
    assert "nothing learned from context yet" in capsys.readouterr().out


def test_without_a_clock_one_line(tmp_path, capsys):
    module = make_module(clock=False)
    make_trainer(tmp_path, 2, callbacks=[PrintCrossEntropy()], limit_val_batches=1.0, val_check_interval=2).fit(
        module, datamodule=ToyData()
    )
    assert f"denoising_ce_nats_per_token {module.report.mean:.4f}" in capsys.readouterr().out

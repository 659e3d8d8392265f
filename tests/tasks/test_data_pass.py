"""Reading batches never holds training up, even where the network is next to nothing."""

import time

import torch
from running import config_of, tiny, write_corpus

from flm.draws import Draws
from flm.tasks.assemble import data_module, new_algorithm


def test_reading_is_ten_times_faster_than_the_smallest_step(tmp_path):
    config = config_of(tmp_path, *tiny(write_corpus(tmp_path / "corpus")))
    data = data_module(config)
    algorithm = new_algorithm(config, data.vocab_size)
    optimizer = torch.optim.AdamW(algorithm.parameters())
    steps, reads = [], []
    for step, batch in enumerate(data.train_loader(0, 10)):  # both in turn, in processor time: the machine is shared
        begin = time.process_time()
        algorithm.loss(batch, Draws(1, step)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.process_time() - begin)
        begin = time.process_time()
        count = sum(1 for _ in data.train_loader(100 * step, 100 * step + 100))
        reads.append((time.process_time() - begin) / count)
    assert count == 100 and min(steps) > 10 * min(reads)

"""Two processes as torchrun starts them, on one machine without it."""

import os
import socket
import time

import pytest
import torch
import torch.multiprocessing

DEADLINE_SECONDS = 1800  # ends a hang; under load they take minutes


def free_ports(count):
    """Numbers of ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _work(rank, function, arguments, environment, folder):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment, MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    function(rank, *arguments)


def run_two(function, *arguments):
    """`function(rank, *arguments)` in both, until they end; it sets MASTER_PORT before each meeting of the two.

    They are forks of a process that only imports: in a fork of one whose threads have multiplied matrices, MKL may look for
    its memory forever.
    """
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["lightning.pytorch", "transformers", "flm.training.module"]
    )
    handed = function, arguments, dict(os.environ), os.getcwd()
    pair = torch.multiprocessing.start_processes(_work, handed, nprocs=2, start_method="forkserver", join=False)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not pair.join(timeout=5):
        if time.monotonic() > deadline:
            for process in pair.processes:
                process.kill()
            pytest.fail("the two processes wait for each other")

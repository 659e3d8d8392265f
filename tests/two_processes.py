"""Two processes as torchrun starts them, on one machine without it."""

import os
import socket
import time

import pytest
import torch
import torch.multiprocessing

DEADLINE_SECONDS = 400


def free_ports(count):
    """Numbers of ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _work(rank, function, arguments):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    function(rank, *arguments)


def run_two(function, *arguments):
    """`function(rank, *arguments)` in both, until they end; it sets MASTER_PORT before each meeting of the two."""
    method = "spawn" if torch.cuda.is_available() else "fork"
    pair = torch.multiprocessing.start_processes(_work, (function, arguments), nprocs=2, start_method=method, join=False)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not pair.join(timeout=5):
        if time.monotonic() > deadline:
            for process in pair.processes:
                process.kill()
            pytest.fail("the two processes wait for each other")

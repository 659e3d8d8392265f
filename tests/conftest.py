import logging
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Reductions in a fixed order: bit-exact comparisons hold on any machine, and two busy threads are slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_handler_is_left():
    """Hydra gives the root logger handlers, whose streams are closed with the test."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        if type(handler).__module__ == "logging":
            root.removeHandler(handler)
    root.setLevel(level)

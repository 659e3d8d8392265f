import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Reductions in a fixed order: bit-exact comparisons hold on any machine, and two busy threads are slower than one."""
    torch.set_num_threads(1)

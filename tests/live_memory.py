"""How much of tensors is alive at once."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Peak bytes of tensor storage alive at once, counted at every operation, forward and backward."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.seen = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.seen:
                    size = storage.nbytes()
                    self.seen[key] = size
                    self.alive += size
                    weakref.finalize(storage, self.release, key)
        self.peak = max(self.peak, self.alive)
        return out

    def release(self, key):
        self.alive -= self.seen.pop(key)

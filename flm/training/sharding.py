"""FSDP2: parameters, gradients, optimiser state and average split over all processes, gathered block by block for use.

Every member of a module's outermost `nn.ModuleList`s, a block, is gathered when it is called and split again after it. All
other parameters, the tables above all, are gathered at the start of a training or validation step and stay whole until its
end, backward pass included: losses read the tables directly, outside of any network's forward pass.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def ddp(find_unused_parameters: bool = False, gradient_as_bucket_view: bool = True, static_graph: bool = False) -> DDPStrategy:
    """Every process has the whole model; arguments as of torch.nn.parallel.DistributedDataParallel."""
    return DDPStrategy(
        find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=gradient_as_bucket_view,
        static_graph=static_graph,
        broadcast_buffers=False,  # clocks and tables are alike on all processes from the start
    )


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes, whose checkpoints are those of any other strategy: one file, nothing split.

    So a run resumes on another number of processes, or under another strategy. The first process assembles the file in its
    main memory: about 16 bytes for each trained parameter (weights, average, two moments of AdamW).

    Args:
        process_group_backend: null for nccl on CUDA, gloo on CPU.
    """

    def __init__(self, process_group_backend: str | None = None):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Of tensors split as they are, like the optimiser's state and the average."""
        assert self.lightning_module is not None
        resplit(self.lightning_module)
        return self.lightning_module.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        checkpoint = whole(checkpoint, self.is_global_zero)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # every process reads the file, mapped, so what it does not keep never leaves the disk's cache
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        stored = checkpoint["state_dict"]
        self.lightning_module.load_state_dict(
            {name: like(tensor, own[name]) if name in own else tensor for name, tensor in stored.items()}, strict=strict
        )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                index: {
                    key: like(value, parameters[index])
                    if isinstance(value, Tensor) and value.shape == parameters[index].shape
                    else value
                    for key, value in values.items()
                }
                for index, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})


def shard(
    module: nn.Module,
    mesh: DeviceMesh,
    forward_methods: tuple[str, ...],
    block_dtype: torch.dtype | None = None,
    by_block: bool = True,
) -> None:
    """Splits a module's parameters over a mesh, in place; nothing where that was done before.

    Args:
        forward_methods: names of the methods that use the parameters; only inside them are those whole.
        block_dtype: blocks are gathered in it; None for the dtype of the parameters. Gradients are summed in fp32.
        by_block: whether a block is whole only while it is called; if not, everything is for as long as such a method runs.
    """
    if isinstance(module, FSDPModule):
        return
    # autocast would keep its low-precision copy of every gathered weight until the backward pass
    policy = MixedPrecisionPolicy(block_dtype, torch.float32 if block_dtype else None, cast_forward_inputs=False)
    for block in blocks_of(module) if by_block else []:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for name in forward_methods:
        register_fsdp_forward_method(module, name)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The members with parameters of the outermost ModuleLists."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [member for member in child if next(member.parameters(), None) is not None]
        else:
            found += blocks_of(child)
    return found


def resplit(module: nn.Module) -> None:
    """Ends the time for which parameters are whole: what follows may change them. Nothing without FSDP2."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def whole_blocks(module: nn.Module) -> Iterator[None]:
    """Inside one of the forward methods: all blocks are whole until the end, however and how often they are called.

    Only the entry needs all processes; inside, each may take as many evaluations as it likes.
    """
    blocks = [part for part in module.modules() if isinstance(part, FSDPModule) and part is not module]
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
        block.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
            block.reshard()


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor in the form of another: this process's part of it where that is split; nothing to do where both are."""
    if not isinstance(model, DTensor) or isinstance(tensor, DTensor):
        return tensor
    # every process has all of it and takes its own part: nothing is sent
    return distribute_tensor(tensor.to(model.device, model.dtype), model.device_mesh, model.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """This process's part, as a view; the tensor itself where it is not split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(value: Any, wanted: bool = True, device: torch.device | str = "cpu") -> Any:
    """A nest of dicts and lists with every split tensor put together on a device, one after the other.

    All processes must call it. Where the result is not `wanted`, None stands for such a tensor.
    """
    if isinstance(value, Mapping):
        return {key: whole(item, wanted, device) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item, wanted, device) for item in value]
    if isinstance(value, DTensor):
        gathered = value.full_tensor()
        return gathered.to(device) if wanted else None
    return value

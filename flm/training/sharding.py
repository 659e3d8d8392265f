"""FSDP2: parameters, gradients, optimiser state and average are split over all processes and gathered block by block for use.

Blocks are the members of a module's outermost `nn.ModuleList`s. Each is gathered when it is called and split again after the
call. All other parameters, as the tables, are gathered at the start of a training or validation step and stay whole until its
end, backward pass included, since losses read the tables outside of any network's forward pass.
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
        broadcast_buffers=False,  # clocks and tables are equal in all processes from the start
    )


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes. A checkpoint is one file with whole tensors, as of any other strategy.

    So a run can resume with another number of processes or another strategy. The first process assembles the file in main
    memory: about 16 bytes for each trained parameter (weights, average, two moments of AdamW).

    Args:
        process_group_backend: null: nccl on CUDA, gloo on CPU.
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
        """The state dict with tensors still split, like the optimiser's state and the average."""
        assert self.lightning_module is not None
        resplit(self.lightning_module)
        return self.lightning_module.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        checkpoint = whole(checkpoint, self.is_global_zero)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # every process maps the file, so parts that it does not keep take no memory of its own
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
    """Splits a module's parameters over a mesh, in place; does nothing if they are split already.

    Args:
        forward_methods: names of the methods that use the parameters, which are whole only inside them.
        block_dtype: in which blocks are gathered; None: the dtype of the parameters. Gradients are summed in fp32.
        by_block: whether a block is whole only while it is called; if not, all are whole inside these methods.
    """
    if isinstance(module, FSDPModule):
        return
    # gathered in low precision, since autocast would keep a low-precision copy of each weight until the backward pass
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
    """Splits gathered parameters again, before they are changed. Does nothing without FSDP2."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@contextmanager
def whole_blocks(module: nn.Module) -> Iterator[None]:
    """Inside one of the forward methods, keeps all blocks whole until the end of the block.

    Only the entry needs all processes; inside, each may call networks as often as it likes.
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
    """A whole tensor split like `model`, with its device and dtype; unchanged if `model` is not split or both are."""
    if not isinstance(model, DTensor) or isinstance(tensor, DTensor):
        return tensor
    # every process has all of it and takes its own part, so nothing is sent
    return distribute_tensor(tensor.to(model.device, model.dtype), model.device_mesh, model.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """This process's part, as a view; the tensor itself if it is not split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(value: Any, wanted: bool = True, device: torch.device | str = "cpu") -> Any:
    """Nested dicts and lists with every split tensor gathered on a device. All processes must call it.

    Args:
        wanted: whether this process needs the result; if not, it has None in place of split tensors.
    """
    if isinstance(value, Mapping):
        return {key: whole(item, wanted, device) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item, wanted, device) for item in value]
    if isinstance(value, DTensor):
        gathered = value.full_tensor()
        return gathered.to(device) if wanted else None
    return value

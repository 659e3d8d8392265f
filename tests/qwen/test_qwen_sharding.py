"""Qwen3 under FSDP2, split by layer over two processes: losses, gradients and the tie of a network that is whole."""

import copy
import os
import socket

import pytest
import torch
import torch.multiprocessing
from tiny_qwen3 import SHAPE
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from flm.qwen.backbone import QwenBackbone
from flm.training.sharding import blocks_of, shard, whole
from flm.vocabulary_losses import cross_entropy


class Trained(nn.Module):
    def __init__(self, again: bool):
        super().__init__()
        architecture = SHAPE | {"model_type": "qwen3"}
        self.backbone = QwenBackbone(101, 32, architecture, time_mode="adaln", activation_checkpointing=again)

    def training_step(self, tokens, t, documents):
        weight = torch.full(tokens.shape, 1 / tokens.numel())
        return cross_entropy(self.backbone(tokens, t, documents), tokens, weight)[0]


def compare(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    distributed.init_process_group("gloo")
    for again in (False, True):
        torch.manual_seed(0)
        split = Trained(again).train()
        with torch.no_grad():
            for name, parameter in split.named_parameters():
                if "time_modulation" in name:
                    parameter.normal_(std=0.02)
        alone = copy.deepcopy(split)
        tokens, t = torch.randint(2, 100, (2, 12)), torch.rand(2)
        documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 10 + [-1] * 2])
        shard(split, init_device_mesh("cpu", (2,)), ("training_step",))
        assert len(blocks_of(split)) == 2 and all(isinstance(block, FSDPModule) for block in blocks_of(split))
        losses = [module.training_step(tokens, t, documents) for module in (split, alone)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[0], losses[1])
        expected = dict(alone.named_parameters())
        for name, parameter in split.named_parameters():
            torch.testing.assert_close(whole(parameter.grad), expected[name].grad)
        network = split.backbone.network
        assert network.lm_head.weight is network.model.embed_tokens.weight
    distributed.destroy_process_group()


@pytest.mark.slow
def test_split_by_layer_it_is_the_network_itself():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(compare, (port,), nprocs=2)

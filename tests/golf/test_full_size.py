"""The native-flow system at the track's own size: packed with its script within 16,000,000 bytes, and scored by both alone."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from running import config_of

from flm.checkpoints import files
from flm.checkpoints.description import KEY, Description
from flm.data.tokenizers import BPETokenizer
from flm.golf.artifact import artifact
from flm.golf.shard_files import write_shard
from flm.tasks.assemble import new_algorithm
from flm.tasks.run import plain_config

LIMIT = 16_000_000
TEXTS = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "docs").glob("*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("law", ["gaussian", "heavy-tailed"])
def test_it_fits_and_is_scored(law, tmp_path, capsys):
    tokenizer = BPETokenizer(vocab_size=1024).build(lambda: iter(TEXTS))
    config = config_of(tmp_path / "recipe", "experiment=golf_native_flow", "data.path=shards", "tokenizer.path=model")
    algorithm = new_algorithm(config, vocab_size=1024)
    generator = torch.Generator().manual_seed(0)
    for parameter in algorithm.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if law == "heavy-tailed":  # Student's t with 4 degrees of freedom
            noise /= torch.randn(4, *parameter.shape, generator=generator).square().mean(0).sqrt()
        parameter.data.copy_(0.02 * noise)
    assert sum(parameter.numel() for parameter in algorithm.parameters()) == 27_530_952
    plain = {key: value for key, value in plain_config(config).items() if key in ("algo", "model", "sampling", "seed")}
    description = Description(plain, tokenizer.to_dict(), 1024, algorithm.length, 0).to_dict()
    state = {f"algorithm.{name}": value for name, value in algorithm.state_dict().items()}
    files.save({"state_dict": state, KEY: description}, tmp_path / "full.ckpt")

    began = time.monotonic()
    wanted = [f"eval.checkpoint_path={tmp_path}/full.ckpt", "eval.disable_ema=true", "artifact.script=true"]
    packed = artifact(config_of(tmp_path / "packed", "mode=artifact", *wanted, "artifact.evaluation=null"))
    seconds = time.monotonic() - began
    model, script = tmp_path / "packed" / "model.flmpack", tmp_path / "packed" / "submission.py"
    assert script.stat().st_size == packed["code_bytes"] <= 120_000
    assert model.stat().st_size + script.stat().st_size == packed["total_bytes"]
    assert 0.99 * LIMIT < packed["total_bytes"] <= LIMIT and len(packed["tried"]) <= 6

    tokens = [token for text in TEXTS for token in tokenizer.encode(text)][: 2 * algorithm.length + 1]
    write_shard(tmp_path / "val.bin", torch.tensor(tokens).numpy())
    began = time.monotonic()
    command = [sys.executable, "-I", str(script), str(model), str(tmp_path / "val.bin"), "--batch", "1"]
    found = json.loads(subprocess.check_output(command, cwd=tmp_path))
    assert found["tokens"] == 2 * algorithm.length and 0 < found["bits_per_byte"] < 20
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    with capsys.disabled():
        print(
            f"\n{law}: {packed['total_bytes']:,} bytes ({packed['code_bytes']:,} of code), steps of {packed['step']:.3f}, "
            f"packed in {seconds:.0f} s, opened and scored in {time.monotonic() - began:.0f} s, {memory:,.0f} MiB"
        )

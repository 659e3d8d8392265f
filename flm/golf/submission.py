"""The program of a submission: loads a packed model and scores a stream of tokens in the same way as mode=golf_eval.

    python submission.py model.flmpack fineweb_val_000000.bin --stride 64 --test-time-training

`flm.golf.submission_script` makes one script of this file and all modules of the package that it imports.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import flm
from flm.data.byte_table import ByteTable
from flm.golf.scored_stream import Reading, score
from flm.golf.shard_files import ShardStream
from flm.golf.test_time_training import TestTimeTraining, score_then_train
from flm.registry import add


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the result as one line of JSON and returns 0, or prints an error as one line and returns 1."""
    given = _parser().parse_args(arguments)
    add("flm.golf")
    try:
        print(json.dumps(scored(given)))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def scored(given: argparse.Namespace) -> dict[str, float | int]:
    """Bits per byte of the tokens in the files, and the numbers of tokens and bytes.

    Raises:
        ValueError, OSError: the model or a file cannot be read, or the options do not fit together.
    """
    lm = flm.load(given.model, given.device, None)
    stream = ShardStream([Path(path) for path in given.shards], lm.tokenizer.vocab_size)
    stop = len(stream) if given.max_tokens is None else min(len(stream), given.max_tokens + 1)
    text, table = torch.from_numpy(stream.read(0, stop)), ByteTable.of(lm.tokenizer)
    stride = lm.length if given.stride is None else given.stride
    reading = Reading(lm.length, stride, 16 * lm.length, given.batch)
    with lm.autocast():
        if given.test_time_training:
            settings = TestTimeTraining() if given.epochs is None else replace(TestTimeTraining(), epochs=given.epochs)
            tally = score_then_train(lm.algorithm, text, reading, settings, table)
        else:
            tally = score(lm.algorithm, text, reading, table)
    return {"bits_per_byte": tally.bits_per_byte, "tokens": tally.num_tokens, "bytes": tally.num_bytes}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Bits per byte of token shards by a packed model.")
    parser.add_argument("model", help="a .flmpack file")
    parser.add_argument("shards", nargs="+", help="token shards, in order")
    parser.add_argument("--stride", type=int, help="of sliding windows; default: windows without overlap")
    parser.add_argument("--test-time-training", action="store_true", help="learn from each chunk once it was scored")
    parser.add_argument("--epochs", type=int, help="of test-time training")
    parser.add_argument("--max-tokens", type=int, help="only the first so many targets")
    parser.add_argument("--batch", type=int, default=32, help="windows scored together")
    parser.add_argument("--device")
    return parser

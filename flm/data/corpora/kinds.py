"""What a path holds, for whom it was named to the wrong kind of corpus."""

from itertools import islice
from pathlib import Path

_LOOKED_AT = 10_000  # files of a folder
# by end of a file's name: what reads it
_READ_BY = {
    ".txt": "data=text",
    ".md": "data=text",
    ".jsonl": "data=text, or data=pairs for prompts with responses",
    ".parquet": "data=text, or data=hub_pairs for prompts with responses",
    ".arrow": "data=text, for what datasets wrote by save_to_disk",
    ".bin": "data=golf_shards, for *_train_*.bin and *_val_*.bin",
    ".json": "data=hub with data.name, data.text_key and data.path",
    ".ndjson": "data=hub with data.name, data.text_key and data.path",
    ".zst": "data=hub with data.name, data.text_key and data.path",
    ".csv": "none: convert it to .jsonl, an object with the key text a line",
    ".tsv": "none: convert it to .jsonl, an object with the key text a line",
    ".ckpt": "none: it is a checkpoint, for eval.checkpoint_path",
    ".safetensors": "none: it is a model, for eval.checkpoint_path",
}


def found_instead(path: Path, but: tuple[str, ...] = ()) -> str:
    """ "; it holds .parquet, which is read by ...", or "" where nothing known is there.

    Args:
        but: ends of names that do not count.
    """
    names = [path.name] if path.is_file() else [file.name for file in islice(path.rglob("*"), _LOOKED_AT)]
    if "manifest.json" in names and any(name.endswith("-counts.bin") for name in names):
        return "; it holds a cache of tokens made here: name the text that it was made of"
    ends = [Path(name.removesuffix(".gz")).suffix for name in names]
    known = [end for end in _READ_BY if end in ends and end not in but]
    return "".join(f"; it holds {end}, read by {_READ_BY[end]}" for end in known[:2])

"""Building a token cache: shards in a draft folder, then a manifest, then one rename.

The draft's name follows from the cache's. A builder that is killed leaves its finished shards there, and the next one goes on
from them. Later builders remove drafts that were not touched for a week.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flm.atomic import write_bytes, write_text
from flm.data import shards
from flm.data.documents import Documents
from flm.data.shard_processes import Job, available_cores, write_shards
from flm.data.shards import Advance, ShardWriter, document_groups
from flm.data.tokenizers import Tokenizer

ABANDONED_SECONDS = 7 * 24 * 3600
_DRAFT = ".draft"

log = logging.getLogger(__name__)


def build(corpus: Documents, tokenizer: Tokenizer, fingerprint: dict[str, Any], folder: Path) -> None:
    """Builds the cache of a corpus and a tokenizer in `folder`, which appears only once it is whole.

    Its bytes depend neither on the number of processes nor on interruptions.

    Raises:
        ValueError: a split is empty, or the corpus, its normaliser or the tokenizer raises it.
    """
    draft = folder.with_name(folder.name + _DRAFT)
    clear_abandoned(folder.parent, but=draft)
    draft.mkdir(exist_ok=True)
    for file in draft.glob(".*.partial"):
        file.unlink(missing_ok=True)
    writer = ShardWriter(draft, corpus.normaliser, tokenizer)
    splits: dict[str, dict[str, Any]] = {
        split: {"documents": 0, "bytes": 0, "tokens": 0, "shards": []} for split in corpus.splits
    }
    counts = {split: np.zeros(tokenizer.vocab_size, dtype=np.int64) for split in splits}
    processes = available_cores() if corpus.processes is None else corpus.processes
    with _progress(f"tokenising {corpus.describe()}") as (advance, finished):
        for name, record, shard_counts in write_shards(writer, _jobs(corpus), processes, shards.SHARD_CHARACTERS, advance):
            split = name.rpartition("-")[0]
            for key in ("documents", "bytes", "tokens"):
                splits[split][key] += record[key]
            splits[split]["shards"].append({key: record[key] for key in ("file", "tokens", "sha256", "crc32")})
            counts[split] += shard_counts
            finished()
    for split, facts in splits.items():
        if not facts["tokens"]:
            shutil.rmtree(draft, ignore_errors=True)
            raise ValueError(f"data: the {split} split of {corpus.describe()} is empty after normalisation")
        facts["shards"] = sorted((s for s in facts["shards"] if s["tokens"]), key=lambda shard: shard["file"])
        raw = counts[split].astype("<i8").tobytes()
        facts["counts"] = {"file": f"{split}-counts.bin", "sha256": hashlib.sha256(raw).hexdigest()}
        write_bytes(draft / facts["counts"]["file"], raw)
    manifest = {
        **fingerprint,
        "provenance": corpus.provenance(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": writer.dtype.str,
        "wrapping": {
            "before_each_document": tokenizer.bos_id if tokenizer.begins_documents else None,
            "after_each_document": None if tokenizer.begins_documents else tokenizer.eos_id,
            "blocks": "cut when read, as data.wrap says",
        },
        "splits": splits,
    }
    manifest["digest"] = manifest_digest(manifest)
    write_text(draft / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    _keep_only(draft, manifest)
    try:
        draft.rename(folder)
    except OSError:  # on file systems without working locks another process may have finished first
        if not folder.exists():
            raise
        shutil.rmtree(draft, ignore_errors=True)


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest that has no digest yet."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def clear_abandoned(root: Path, but: Path | None = None) -> None:
    """Removes drafts that no running process builds and that were not touched for a week; never the draft `but`."""
    for draft in root.glob(f"*{_DRAFT}"):
        if draft == but:
            continue
        lock = FileLock(root / f"{draft.name.removesuffix(_DRAFT)}.lock")
        try:
            if time.time() - draft.stat().st_mtime < ABANDONED_SECONDS:
                continue
            with lock.acquire(timeout=0):
                log.info("removing %s: not touched for a week", draft)
                shutil.rmtree(draft, ignore_errors=True)
        except (Timeout, FileNotFoundError):
            continue


def _jobs(corpus: Documents) -> Iterator[Job]:
    for split in corpus.splits:
        for number, documents in enumerate(document_groups(corpus.raw_documents(split))):
            yield f"{split}-{number:05d}", documents


def _keep_only(draft: Path, manifest: dict[str, Any]) -> None:
    """Removes files that the manifest does not name: records of shards, and shards of a source that has become shorter."""
    wanted = {"manifest.json"}
    for split in manifest["splits"].values():
        wanted |= {split["counts"]["file"], *(shard["file"] for shard in split["shards"])}
    for file in draft.iterdir():
        if file.name not in wanted:
            file.unlink(missing_ok=True)


@contextmanager
def _progress(what: str) -> Iterator[tuple[Advance, Any]]:
    """Shows tokens and shards done so far in a terminal, and logs the total at the end."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.completed:,} tokens, {task.fields[shards]} shards, {task.fields[rate]:,} tokens/s"),
        TimeElapsedColumn(),
    )
    begin = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, shards=0, rate=0)
        done = 0

        def advance(tokens: int) -> None:
            nonlocal done
            done += tokens
            progress.update(task, advance=tokens, rate=round(done / max(time.monotonic() - begin, 1e-3)))

        def finished() -> None:
            progress.update(task, shards=progress.tasks[0].fields["shards"] + 1)

        yield advance, finished
    log.info("%s: %d tokens in %.0f s", what, done, time.monotonic() - begin)

"""Files of a data set on the Hugging Face hub, fetched into a folder.

They are fetched one by one: `huggingface_hub.snapshot_download` returns a folder even if it could not complete it.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from flm.atomic import write_text
from flm.handed_in import read_json

REACH_SECONDS = 5.0  # a hub that does not answer for so long counts as unreachable
_RECORD = ".download.json"

log = logging.getLogger(__name__)


class Unreachable(Exception):
    """Files cannot be fetched from the hub; its message is one line on why."""


class Download:
    """Files of one revision in one folder, and a record of their commit and of the choices that are complete.

    An interrupted download continues at the same commit. A complete one needs no network.

    Args:
        hub: data set, user/name.
        revision: branch, tag or commit.
        folder: the files get the paths in it that they have in the data set.
    """

    def __init__(self, hub: str, revision: str, folder: Path):
        self.hub, self.revision, self.folder = hub, revision, folder

    @property
    def begun(self) -> bool:
        """Whether the folder was begun by a download; otherwise a user put its files there."""
        return (self.folder / _RECORD).exists()

    def provenance(self) -> dict[str, Any]:
        record = self._record() or {}
        return {key: record.get(key) for key in ("hub", "revision", "commit")}

    def fetch(self, choose: Callable[[list[str]], list[str]], what: str) -> list[str]:
        """Paths in the folder of the files that `choose` picks from all names of the data set, fetched if need be.

        Args:
            what: a name for the choice, by which the record knows it.

        Raises:
            Unreachable: files must be fetched, and the hub does not answer or does not have the data set.
            ValueError: the folder holds another data set or revision, or a file of it is gone.
        """
        record = self._record()
        if record is None or what not in record["whole"]:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".download.lock"):  # so that one of several processes downloads
                record = self._record()
                if record is None or what not in record["whole"]:
                    record = self._fetch(record, choose, what)
        names: list[str] = record["whole"][what]
        missing = next((name for name in names if not (self.folder / name).is_file()), None)
        if missing is not None:
            raise ValueError(f"data: {self.folder / missing} is gone: delete {self.folder / _RECORD} to download it again")
        return names

    def _fetch(self, record: dict[str, Any] | None, choose: Callable[[list[str]], list[str]], what: str) -> dict[str, Any]:
        from huggingface_hub import HfApi, hf_hub_download

        revision = self.revision if record is None else record["commit"]
        try:
            info = HfApi().dataset_info(self.hub, revision=revision, timeout=REACH_SECONDS)
            names = choose([file.rfilename for file in info.siblings or []])
            if record is None:
                record = {"hub": self.hub, "revision": self.revision, "commit": info.sha, "whole": {}}
                self._write(record)
            log.info("downloading %d files of %s (%s) into %s", len(names), self.hub, what, self.folder)
            for name in names:
                hf_hub_download(self.hub, name, repo_type="dataset", revision=record["commit"], local_dir=self.folder)
        except Exception as error:  # the hub's client, its transport and the system each raise their own
            raise Unreachable(" ".join(str(error).split()) or type(error).__name__) from error
        record["whole"][what] = names
        self._write(record)
        return record

    def _record(self) -> dict[str, Any] | None:
        path = self.folder / _RECORD
        try:
            record = read_json(path)
            if (record["hub"], record["revision"]) != (self.hub, self.revision):
                raise ValueError(
                    f"data: {self.folder} holds {record['hub']}, revision {record['revision']}: delete it, or change data.name"
                )
            if not isinstance(record["whole"], dict) or not isinstance(record["commit"], str):
                raise TypeError(record)
        except FileNotFoundError:
            return None
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"data: {path} is damaged: delete it, and its files are checked and completed") from error
        return record

    def _write(self, record: dict[str, Any]) -> None:
        write_text(self.folder / _RECORD, json.dumps(record, indent=1))

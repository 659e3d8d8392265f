"""docs/sources.md keeps its word: each command of a row that "works" is run as it stands, small, through what a user starts."""

import re
import zlib

import pytest
from scripts.sources_page import ROOT, STATUS, Command, rows, to_run
from scripts.sources_world import MAKERS, NO_OVERRIDES, SMALL, World


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.claim)
def test_a_row_has_a_command_or_says_why_not(row):
    assert row.status.startswith(STATUS), row.status
    assert row.commands or not row.status.startswith("works")
    for line in row.commands:
        command = Command.of(line)
        program, place = command.words[:2]
        assert (program, place) == ("python", "-c") or (program in ("bash", "python") and (ROOT / place).is_file()), line
        if row.status.startswith("works"):
            assert set(command.names) <= MAKERS.keys(), line
            assert NO_OVERRIDES.search(line) or any(re.search(look, line) for look, _ in SMALL), line


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    for library in ("datasets", "transformers", "sentencepiece"):
        pytest.importorskip(library)
    return World(tmp_path_factory.mktemp("sources"))


@pytest.mark.slow
@pytest.mark.parametrize("line", to_run())
def test_what_works_works(world, line):
    done, out = world.run(line, f"row_{zlib.crc32(line.encode())}")
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    written = {file.suffix for file in out.rglob("*") if file.is_file()}
    if NO_OVERRIDES.search(line):
        assert done.stdout.strip() or "python -c" in line
    else:
        assert ({".ckpt"} if "mode=" not in line and "gen_ppl" not in line and "evaluate" not in line else {".json"}) <= written

"""Many clients at once: all are answered, together where they ask alike. scripts/load_test.py does the asking."""

import asyncio
import runpy
from pathlib import Path

from serving.models import tiny
from serving.test_serving import running

from flm.serving.limits import Limits

load = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "load_test.py"))["load"]


def test_clients_that_come_together_share_batches():
    with running(tiny(), Limits(batch=8, queue=64)) as (url, engine):
        alone = asyncio.run(load(url, 1, 8, {"steps": 8}))
        many = asyncio.run(load(url, 16, 48, {"steps": 8}))
        assert engine.counts.texts == 8 + 48 and engine.counts.dropped == engine.counts.refused == 0
    assert alone["texts_per_batch"] == 1 and 2 < many["texts_per_batch"] <= 8
    assert many["slowest_of_20_s"] >= many["median_s"] > 0

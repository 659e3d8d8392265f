"""How many requests a running `flm serve` answers, and how fast: `python scripts/load_test.py --clients 1 8 32`.

Bounded: each number of clients sends --requests requests in all, each client one after the other, to a server on this machine.
"""

import argparse
import asyncio
import json
import statistics
import time
from urllib.parse import urlsplit

import httpx


async def load(url: str, clients: int, requests: int, body: dict) -> dict[str, float]:
    """Requests a second, seconds to an answer, and texts made together, with so many clients at once."""
    seconds: list[float] = []
    left = iter(range(requests))

    async def ask(client: httpx.AsyncClient) -> None:
        for _ in left:
            begun = time.perf_counter()
            answer = await client.post(f"{url}/v1/completions", json=body)
            answer.raise_for_status()
            seconds.append(time.perf_counter() - begun)

    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=clients)) as client:
        before, begun = await counts(client, url), time.perf_counter()
        await asyncio.gather(*(ask(client) for _ in range(clients)))
        took, after = time.perf_counter() - begun, await counts(client, url)
    made = {name: after[name] - before[name] for name in after}
    return {
        "clients": clients,
        "requests_per_second": len(seconds) / took,
        "median_s": statistics.median(seconds),
        "slowest_of_20_s": statistics.quantiles(seconds, n=20)[-1],
        "texts_per_batch": made["flm_texts_total"] / made["flm_batches_total"],
    }


async def counts(client: httpx.AsyncClient, url: str) -> dict[str, float]:
    lines = (await client.get(f"{url}/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="for each number of clients")
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    if urlsplit(given.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        parser.error("--url: a server on this machine; others' are not ours to load")
    for clients in given.clients:
        print(json.dumps(asyncio.run(load(given.url, clients, given.requests, {"steps": given.steps}))), flush=True)


if __name__ == "__main__":
    main()

"""The endpoint under load: many drafts at a time against one after another, and more than it can take.

    python -m benchmarks.serving                       # a small random model, phantom CTs
    python -m benchmarks.serving --model DIR           # a model of your own, same CTs

A tritonserver is started on loopback and asked over gRPC by asyncio clients, each request on a stream of its
own (tritonclient). "One at a time" is the same engine with room for one request, behind the same server;
"generate" is transformers' own, called here on volumes in memory, without server and messages. Every request
is about a CT that the server has not seen, so all are read and encoded. Greedy. Three minutes on two cores.
"""

import argparse
import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from benchmarks.measure import machine, seconds, table
from mu2llm.serving import server
from mu2llm.serving.client import BusyError, report_async
from mu2llm.serving.export import Limits, export_triton

ROWS = 16  # of the engine's batch


@dataclass
class Load:
    """What clients saw: seconds of each draft and to its first piece, gaps between pieces, refusals."""

    seconds: float = 0.0
    drafts: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    lost: int = 0

    @property
    def rate(self) -> float:
        return len(self.drafts) / self.seconds


class Volumes:
    """So many different CTs, in turn: a NIfTI file with a number in its description."""

    def __init__(self, path: Path, count: int = 10**9):
        self.path = path
        self.data = path.read_bytes()
        self.count = count
        self.number = 0

    def next(self) -> bytes:
        self.number = self.number % self.count + 1
        return self.data[:148] + f"{self.number:<80}".encode() + self.data[228:]


async def one(load: Load, volume: bytes, url: str, max_tokens: int) -> None:
    began = time.perf_counter()
    first = 0.0
    draft = report_async(volume, url=url, max_tokens=max_tokens)
    try:
        async for _ in draft:
            first = first or time.perf_counter()
    except BusyError:
        load.refused.append(time.perf_counter() - began)
        return
    if not draft.finish_reason:
        load.lost += 1
        return
    load.drafts.append(time.perf_counter() - began)
    load.first.append(first - began)
    load.per_token.append((time.perf_counter() - first) / draft.usage["completion_tokens"])


async def crowd(clients: int, volumes: Volumes, url: str, args: argparse.Namespace, duration: float) -> Load:
    """So many clients, each asking again as soon as it has its answer, until the time is over."""
    load = Load()
    began = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < began + duration:
            refused = len(load.refused)
            await one(load, volumes.next(), url, args.max_tokens)
            if len(load.refused) > refused:
                await asyncio.sleep(0.25)  # as a client does that was told to try later

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - began
    return load


async def flood(rate: float, volumes: Volumes, url: str, args: argparse.Namespace, duration: float) -> Load:
    """So many requests a second, evenly, whatever becomes of those before; each asks once."""
    load = Load()
    began = time.perf_counter()
    asked = []
    while (due := began + len(asked) / rate) < began + duration:
        await asyncio.sleep(due - time.perf_counter())
        asked.append(asyncio.create_task(one(load, volumes.next(), url, args.max_tokens)))
    load.seconds = time.perf_counter() - began
    await asyncio.gather(*asked)
    return load


async def requests(count: int, volumes: Volumes, url: str) -> None:
    """So many short drafts, eight at a time."""
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await one(Load(), volumes.next(), url, 12)

    await asyncio.gather(*(client() for _ in range(8)))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(name: str, load: Load) -> tuple[str, ...]:
    return (
        name,
        f"{load.rate:.2f}",
        f"{statistics.median(load.drafts):.2f} s",
        f"{1000 * quantile(load.first, 0.5):.0f} / {1000 * quantile(load.first, 0.99):.0f} ms",
        f"{1000 * quantile(load.per_token, 0.5):.1f} ms",
        str(len(load.drafts)),
        str(len(load.refused)),
        str(load.lost),
    )


def generate(model: Path, volumes: Volumes, args: argparse.Namespace) -> float:
    """Drafts per second of transformers' `generate`, one after another, on the same volumes."""
    from mu2llm.data.records import REPORT_QUESTION
    from mu2llm.evaluation.drafts import load
    from mu2llm.volume import load_volume_bytes

    loaded = load(model)

    def one() -> None:
        frames = loaded.processor.frames(load_volume_bytes(volumes.next()))
        batch = loaded.processor([frames], [REPORT_QUESTION])
        with torch.inference_mode():
            loaded.model.generate(**batch, max_new_tokens=args.max_tokens, do_sample=False)

    return 1 / seconds(one, runs=max(3, int(4 * args.seconds)))


def start(model: Path, folder: Path, limits: Limits) -> server.Server:
    probes = [socket.socket() for _ in range(3)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    export_triton(model, folder / "repository", version=1, manifest={}, limits=limits)
    names = ("grpc_port", "http_port", "metrics_port")
    return server.start(
        folder / "repository", state_dir=folder / "state", **dict(zip(names, ports, strict=True))
    )


def small_model(folder: Path) -> Path:
    from mu2llm.data.records import REPORT_QUESTION
    from mu2llm.model.tiny import build_tiny

    torch.manual_seed(0)
    model, processor = build_tiny(["The lungs are clear. No pleural effusion is seen.", REPORT_QUESTION])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def phantom(folder: Path) -> Path:
    import gzip

    from mu2llm.data.phantom import write_phantoms

    write_phantoms(folder, 1, preset="demo", seed=0)
    packed = next(folder.rglob("*.nii.gz"))
    plain = packed.with_suffix("")
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    return plain


def memory_mb(running: server.Server) -> list[int]:
    """Resident memory of tritonserver, its Python backend and the worker."""
    top = psutil.Process(running.pid)
    return [p.memory_info().rss >> 20 for p in (top, *top.children(recursive=True))]


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--model", type=Path, help="model folder")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--overload-seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=96)
    args = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        model = args.model or small_model(folder / "model")
        volumes = Volumes(phantom(folder / "phantoms"))

        @contextlib.contextmanager
        def served(limits: Limits) -> Iterator[str]:
            running = start(model, folder, limits)
            try:
                asyncio.run(crowd(2, volumes, running.url, args, 2))  # warm
                yield running.url
            finally:
                server.stop(folder / "state")

        def by(clients: int, url: str, name: str = "") -> Load:
            load = asyncio.run(crowd(clients, volumes, url, args, args.seconds))
            rows.append(row(name or f"{clients} clients", load))
            return load

        plain = generate(model, volumes, args)
        rows: list[tuple[str, ...]] = []
        with served(Limits(max_batch=1, max_queue=16)) as url:
            sequential = by(8, url, "one at a time, 8 clients")
        with served(Limits(max_batch=ROWS)) as url:
            loads = {clients: by(clients, url) for clients in (1, 4, 8, 16)}
        with served(Limits(max_batch=8, max_queue=8)) as url:
            # Its capacity is what works and waits here: 8 and 8. Then four times as much is asked of it.
            full = by(16, url, "at capacity, 16 clients")
            over = asyncio.run(flood(4 * full.rate, volumes, url, args, args.overload_seconds))
            rows.append(row(f"overload, {4 * full.rate:.0f} requests / s", over))
        running = start(model, folder, Limits())
        try:
            few = Volumes(volumes.path, 20)
            memory = {}
            for count in (500, 500, 1000):
                asyncio.run(requests(count, few, running.url))
                memory[max(memory, default=0) + count] = memory_mb(running)
        finally:
            server.stop(folder / "state")
    head = ("load", "drafts / s", "draft p50", "first piece p50 / p99", "a token p50", "drafts")
    print(table(rows, (*head, "refused", "lost")))
    eight = loads[8].rate
    print(f"\n`generate`, one after another: {plain:.2f} drafts / s")
    print("8 clients, times the drafts per second of")
    print(f"  the same server with room for one at a time: {eight / sequential.rate:.2f} (asked for: 3)")
    print(f"  1 client: {eight / loads[1].rate:.2f}")
    print(f"  `generate` without a server: {eight / plain:.2f}")
    latency = statistics.median(over.drafts) / statistics.median(full.drafts)
    late = quantile(over.drafts, 0.99) / quantile(full.drafts, 0.99)
    print(
        f"overload against capacity, accepted drafts: p50 {latency:.2f}, p99 {late:.2f} times (asked for: 2)"
    )
    print(f"refused in {1000 * quantile(over.refused, 0.5):.0f} ms (p50), {over.lost + full.lost} lost")
    print("MiB of tritonserver, its Python backend, the worker, after so many requests about 20 CTs:")
    for count, parts in memory.items():
        print(f"  {count}: {' + '.join(map(str, parts))}")


if __name__ == "__main__":
    main()

"""Speed and memory of the corpus: python -m benchmarks.corpus [--reports 50000] [--calls 12800]

Needs no GPU, no network and no CT; leave the machine alone meanwhile. It prints
- answers per second from a server that takes 200 ms and lets 64 in at once, against the 320 that it can give;
- reports per second of the rules provider on one core;
- how far memory rises from 1,000 reports to `--reports` with the rules provider, and from 200 to `--asked`
  reports with a server that answers at once (asked: within 200 MB).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.measure import machine, peak_bytes, table
from mu2llm.corpus.build import build_corpus
from mu2llm.data.phantom import write_report
from mu2llm.data.records import Report, Study, write_jsonl
from mu2llm.volume.phantom import PRESETS, draw_findings

AT_ONCE, SECONDS = 64, 0.2
CALLS_PER_REPORT = 11  # one for questions, three for each of three questions, one for the narrative
QUESTIONS = [
    {"entity": "lung nodule", "aspect": aspect, "question": f"What is the {aspect} of the nodule?"}
    for aspect in ("presence", "location", "attributes")
]
SAID = {
    "thinking": "There is a small nodule in the left upper lobe [S1].",
    "answer": "There is a small nodule in the left upper lobe [S1].",
    "reason": "sound",
    "supported": True,
    "answers": True,
    "questions": QUESTIONS,
    "findings": ["There is a small nodule in the left upper lobe [S1]."],
    "impression": ["There is a small nodule in the left upper lobe [S1]."],
    "follow_up": [],
}


def phantoms(count: int) -> Iterator[Study]:
    """Studies with phantom reports, as many as wanted, one after the other."""
    for number in range(count):
        rng = np.random.default_rng([11, number])
        report = Report(*write_report(draw_findings(PRESETS["demo"], rng), rng))
        yield Study(f"s{number}", f"s{number}", "made", "train", f"s{number}.nii.gz", "hu", report)


def nodules(count: int) -> Iterator[Study]:
    """Studies whose reports differ in their second sentence only, so that each prompt is another one."""
    for number in range(count):
        text = f"There is a small nodule in the left upper lobe. Series {number + 3} was read."
        yield Study(f"s{number}", f"s{number}", "made", "train", f"s{number}.nii.gz", "hu", Report(text))


def serve(port, seconds: float = SECONDS) -> None:  # type: ignore[no-untyped-def]
    """A chat endpoint in a process of its own, lean enough not to be what is measured."""
    content = {"message": {"role": "assistant", "content": json.dumps(SAID)}, "finish_reason": "stop"}
    body = json.dumps({"choices": [content]}).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    room = asyncio.Semaphore(AT_ONCE)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
                await reader.readexactly(int(fields[b"content-length"]))
                async with room:
                    await asyncio.sleep(seconds)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=256)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def served(seconds: float) -> Iterator[str]:
    """The URL of a server that takes `seconds` for an answer."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, seconds))
    server.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        server.terminate()
        server.join()


def throughput(folder: Path, calls: int) -> float:
    """Answers per second, from the first study to the last file."""
    with served(SECONDS) as url:
        write_jsonl(folder / "nodules.jsonl", nodules(calls // CALLS_PER_REPORT))
        began = time.perf_counter()
        build_corpus(folder / "nodules.jsonl", folder / "endpoint", llm=url, model="m", concurrency=AT_ONCE)
        seconds = time.perf_counter() - began
        with (folder / "endpoint" / "responses.jsonl").open("rb") as lines:
            return sum(1 for _ in lines) / seconds


def memory(count: int) -> int:
    """How far building a corpus of `count` reports by rules raises the memory of a process, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder) / "studies.jsonl", phantoms(count))
        return peak_bytes(lambda: build_corpus(Path(folder) / "studies.jsonl", Path(folder) / "out"))


def asked_memory(count: int, url: str) -> int:
    """The same for a corpus of `count` reports by a model that answers at once."""
    with tempfile.TemporaryDirectory() as folder:
        studies = Path(folder) / "studies.jsonl"
        write_jsonl(studies, nodules(count))
        return peak_bytes(lambda: build_corpus(studies, Path(folder) / "out", llm=url, model="m"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=int, default=50_000, help="the larger corpus, for memory")
    parser.add_argument("--asked", type=int, default=2_000, help="the larger corpus that a model makes")
    parser.add_argument("--calls", type=int, default=12_800, help="answers that are asked for")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rate, best = throughput(folder, args.calls), AT_ONCE / SECONDS
        write_jsonl(folder / "studies.jsonl", phantoms(1000))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
        began = time.perf_counter()
        build_corpus(folder / "studies.jsonl", folder / "rules")
        reports = 1000 / (time.perf_counter() - began)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # each in a fresh process
        small, large = (pool.apply(memory, (count,)) for count in (1000, args.reports))
        with served(0) as url:
            few, many = (pool.apply(asked_memory, (count, url)) for count in (200, args.asked))
    rows = [
        (f"answers/s of {best:g} possible", f"{rate:.0f} ({rate / best:.0%})", "≥ 90 %"),
        ("reports/s by rules, one core", f"{reports:.0f}", "≥ 50"),
        (
            f"memory by rules, 1,000 → {args.reports:,} reports",
            f"+{(large - small) / 1e6:.0f} MB",
            "≤ 200 MB",
        ),
        (f"memory by a model, 200 → {args.asked:,} reports", f"+{(many - few) / 1e6:.0f} MB", "≤ 200 MB"),
    ]
    print(machine())
    print(table(rows, ("what", "measured", "asked")))


if __name__ == "__main__":
    main()

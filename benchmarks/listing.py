"""A bucket of a million keys listed through `mu2llm.storage`: seconds and memory beside ten thousand.

    python -m benchmarks.listing

The server is another process of the same machine and answers ListObjectsV2 with pages of 1,000 made-up keys;
nothing is stored anywhere.
"""

import multiprocessing
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from urllib.parse import parse_qs, urlsplit

from benchmarks.measure import machine, peak_bytes, table

PAGE = 1000
SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


class Pages(BaseHTTPRequestHandler):
    """The bucket `b1000` has 1,000 keys; the continuation token is the number of keys that went before."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = parse_qs(place.query, keep_blank_values=True)
        count, start = int(place.path.strip("/")[1:]), int(asked.get("continuation-token", ["0"])[0])
        if "location" in asked:
            body = f"<LocationConstraint {SPACE}/>"
        else:
            stop = min(start + PAGE, count)
            more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < count else ""
            keys = "".join(map(_item, range(start, stop)))
            body = (
                f"<ListBucketResult {SPACE}><Name>b{count}</Name><KeyCount>{stop - start}</KeyCount>"
                f"<IsTruncated>{str(stop < count).lower()}</IsTruncated>{more}{keys}</ListBucketResult>"
            )
        data = body.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


def _item(i: int) -> str:
    return (
        f"<Contents><Key>train_{i // 4:07d}/train_{i // 4:07d}_a/train_{i // 4:07d}_a_{i % 4}.nii.gz</Key>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>100000000</Size>"
        f"<ETag>&quot;{i:032x}&quot;</ETag><StorageClass>STANDARD</StorageClass></Contents>"
    )


def serve(told: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    told.send(server.server_port)
    server.serve_forever()


def listed(port: int, count: int, told: Connection) -> None:
    """Lists one bucket in this process; sends the seconds and how far its memory rose at its highest."""
    from mu2llm import storage

    os.environ |= {"MU2_S3_ENDPOINT": f"http://127.0.0.1:{port}"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

    def whole(keys: int) -> None:
        last, found = "", 0
        for file in storage.each_file(f"s3://b{keys}"):
            if file <= last:
                raise RuntimeError(f"{file} came behind {last}")
            last, found = file, found + 1
        if found != keys:
            raise RuntimeError(f"{found:,} keys came of {keys:,}")

    whole(PAGE)  # loads the packages
    began = time.perf_counter()
    peak = peak_bytes(lambda: whole(count))
    told.send((time.perf_counter() - began, peak))


def main() -> None:
    print(f"{machine()}\n", flush=True)
    processes = multiprocessing.get_context("spawn")
    mine, theirs = processes.Pipe()
    server = processes.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = mine.recv()
    found = {}
    for count in (10_000, 1_000_000):
        child = processes.Process(target=listed, args=(port, count, theirs))
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(child.exitcode)
        found[count] = mine.recv()
    server.terminate()
    (few_s, few), (many_s, many) = found.values()
    rows = [
        ("memory", f"{few / 2**20:.1f} MiB", f"{many / 2**20:.1f} MiB", f"{many / few:.2f}"),
        ("seconds", f"{few_s:.3g} s", f"{many_s:.3g} s", f"{many_s / few_s:.3g}"),
    ]
    print(table(rows, ("figure", "10,000 keys", "1,000,000 keys", "ratio")))


if __name__ == "__main__":
    main()

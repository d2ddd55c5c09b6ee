"""`mu2 serve` and `mu2 report`: the endpoint on this machine, and drafts from any endpoint."""

import argparse
from pathlib import Path
from typing import Any

from mu2llm import NOTICE
from mu2llm.storage import write_bytes

FORMATS = ("text", "json", "fhir", "dicom-sr")
PORTS = {"grpc": 8001, "http": 8000, "metrics": 8002}


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    serve = commands.add_parser("serve", help="start, watch or stop a tritonserver on this machine")
    what = serve.add_mutually_exclusive_group()
    what.add_argument("--stop", action="store_true", help="stop the server")
    what.add_argument("--status", action="store_true", help="say whether it runs, and where")
    serve.add_argument(
        "--state", type=Path, default=Path("demo/serving"), help="the server's folder (default: demo/serving)"
    )
    serve.add_argument("--repository", type=Path, help="Triton model repository (default: STATE/repository)")
    serve.add_argument(
        "--volume-root", action="append", default=[], help="folder or s3:// prefix that VOLUME_URI may name"
    )
    add_ports(serve)
    serve.set_defaults(run=run_serve)

    report = commands.add_parser("report", help="the draft report of a CT, streamed from an endpoint")
    report.add_argument("source", type=Path, help="a NIfTI file, or a DICOM series as a folder or zip file")
    report.add_argument("--question", help="ask this in place of the report")
    report.add_argument("--url", default=f"127.0.0.1:{PORTS['grpc']}", help="host:port of the gRPC endpoint")
    report.add_argument("--max-tokens", type=int, help="the most tokens to write")
    report.add_argument("--temperature", type=float, default=0.0, help="0: always the same draft (default)")
    report.add_argument("--seed", type=int, help="for temperatures above 0")
    report.add_argument("--timeout", type=float, default=600, help="seconds for the whole answer")
    report.add_argument("--retries", type=int, default=0, help="how often to ask a busy server again")
    report.add_argument("--saliency", type=Path, help="write here where the draft comes from (.nii.gz)")
    report.add_argument("--format", choices=FORMATS, default="text", help="default: text, as it is written")
    report.add_argument("--out", type=Path, help="file for the document (needed for dicom-sr)")
    report.set_defaults(run=run_report)


def add_ports(verb: argparse.ArgumentParser) -> None:
    """The options for the server's three ports."""
    for name, port in PORTS.items():
        verb.add_argument(f"--{name}-port", type=int, default=port, help=f"default: {port}")


def ports_of(args: argparse.Namespace) -> dict[str, int]:
    return {f"{name}_port": getattr(args, f"{name}_port") for name in PORTS}


def run_serve(args: argparse.Namespace) -> int:
    from mu2llm.serving import server

    if args.stop:
        print("stopped" if server.stop(args.state) else f"no server runs for {args.state}")
        return 0
    if args.status:
        running = server.status(args.state)
        answers = running is not None and server.ready(running)
        if running and not answers:
            print(f"pid {running.pid} does not answer: it is starting or stopping, log {running.log}")
        else:
            print(_described(running) if running else f"no server runs for {args.state}")
        return 0 if answers else 1
    repository = args.repository or args.state / "repository"
    running = server.start(repository, state_dir=args.state, volume_roots=args.volume_root, **ports_of(args))
    print(_described(running))
    return 0


def _described(running: Any) -> str:
    return (
        f"serving version {running.version} at {running.url} (gRPC), http://127.0.0.1:{running.http_port}; "
        f"pid {running.pid}, log {running.log}"
    )


def run_report(args: argparse.Namespace) -> None:
    from mu2llm.data.records import REPORT_QUESTION
    from mu2llm.pipelines.drafts import stream
    from mu2llm.serving import documents

    if args.format == "dicom-sr" and not args.out:
        raise ValueError("--format dicom-sr makes a binary file: say where with --out FILE")
    if args.format == "dicom-sr":
        documents.images(args.source)  # what cannot be referred to is told before a draft is asked for
    if args.saliency and not args.saliency.name.endswith(".nii.gz"):
        raise ValueError(f"--saliency {args.saliency}: give a name that ends with .nii.gz")
    options: dict[str, Any] = {
        "url": args.url,
        "question": args.question or REPORT_QUESTION,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
        "timeout": args.timeout,
        "retries": args.retries,
        "saliency": args.saliency is not None,
    }
    if args.format == "text" and not args.out:
        print(NOTICE)
        draft = stream(args.source, **options)
    else:
        draft = _whole(args.source, options)
        document = _document(draft, args.source, args.format)
        if args.out:
            write_bytes(args.out, document)
            print(f"{args.out}: {NOTICE}")
        else:
            print(document.decode("utf-8"), end="")
    if args.saliency and not draft.saliency:
        raise RuntimeError("the draft is empty: there is nothing to explain")
    if args.saliency:
        write_bytes(args.saliency, draft.saliency)


def _whole(source: Path, options: dict[str, Any]) -> Any:
    from mu2llm.serving.client import report

    draft = report(source, **options)
    for _ in draft:
        pass
    return draft


def _document(draft: Any, source: Path, kind: str) -> bytes:
    from mu2llm.serving import documents

    if kind == "dicom-sr":
        return documents.to_dicom_sr(draft, source)
    if kind == "text":
        return f"{draft.notice}\n\n{draft.text.strip()}\n".encode()
    return (documents.to_json(draft) if kind == "json" else documents.to_fhir(draft, source)).encode()

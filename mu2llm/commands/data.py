"""`mu2 data` and `mu2 corpus`: CTs and reports in, Study records and training samples out."""

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    data = commands.add_parser("data", help="CTs and reports → Study records").add_subparsers(
        metavar="VERB", required=True
    )
    ingest = data.add_parser("ingest", help="check a folder of CTs with its reports.csv")
    ingest.add_argument("root", help="folder with the volumes and reports.csv")
    ingest.add_argument("--out", required=True, help="folder for studies.jsonl, rejects.jsonl, ingest.json")
    ingest.add_argument("--seed", type=int, default=0, help="of the split by patient (default: 0)")
    ingest.set_defaults(run=run_ingest)

    phantom = data.add_parser("phantom", help="write synthetic CTs with true findings and their reports")
    phantom.add_argument("root", help="folder to write")
    phantom.add_argument("--count", type=int, default=2400, help="how many CTs (default: 2400)")
    phantom.add_argument("--preset", default="demo", choices=("demo", "full"), help="how hard (docs/data.md)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=run_phantom)

    corpus = commands.add_parser("corpus", help="reports → questions, answers and cited narratives")
    build = corpus.add_subparsers(metavar="VERB", required=True).add_parser("build", help="the five stages")
    build.add_argument("--studies", required=True, help="studies.jsonl")
    build.add_argument("--out", required=True, help="folder for samples.jsonl, drops.jsonl, corpus.json")
    build.add_argument(
        "--llm", default="rules", help="rules (no network), or an endpoint: http://host:8000/v1"
    )
    build.add_argument("--model", default="", help="the model that the endpoint serves (key: MU2_LLM_KEY)")
    build.add_argument(
        "--judge-llm", default="", help="another endpoint for the judge (key: MU2_JUDGE_LLM_KEY)"
    )
    build.add_argument("--judge-model", default="", help="the judge's model (default: the writer's)")
    build.add_argument("--concurrency", type=int, default=16, help="requests at once (default: 16)")
    build.add_argument("--timeout", type=float, default=300.0, help="seconds until an answer is late (300)")
    build.set_defaults(run=run_corpus)


def run_ingest(args: argparse.Namespace) -> None:
    from mu2llm.data.ingest import ingest

    print(json.dumps(ingest("folder", args.root, args.out, seed=args.seed), indent=1, ensure_ascii=False))


def run_phantom(args: argparse.Namespace) -> None:
    from mu2llm.data.phantom import write_phantoms

    write_phantoms(args.root, args.count, preset=args.preset, seed=args.seed)
    print(f"{args.count} synthetic CTs with reports.csv and labels.csv in {args.root}")


def run_corpus(args: argparse.Namespace) -> None:
    from mu2llm.corpus.build import build_corpus

    summary = build_corpus(
        args.studies,
        args.out,
        llm=args.llm,
        model=args.model,
        judge_llm=args.judge_llm,
        judge_model=args.judge_model,
        concurrency=args.concurrency,
        asking={"timeout": args.timeout},
    )
    print(json.dumps(summary, indent=1, ensure_ascii=False))

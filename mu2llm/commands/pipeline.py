"""`mu2 demo` and `mu2 pipeline`: the whole chain on this machine, or compiled for a cluster."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mu2llm.commands.serve import add_ports, ports_of


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    demo = commands.add_parser("demo", help="the whole pipeline on this machine: CTs in, a served model out")
    demo.add_argument("--data", type=Path, help="folder of CTs with reports.csv (default: synthetic CTs)")
    _shared(demo, out="demo", preset="demo")
    demo.set_defaults(run=run_local)

    verbs = commands.add_parser("pipeline", help="compile the pipeline, or run it here").add_subparsers(
        metavar="VERB", required=True
    )
    compiled = verbs.add_parser("compile", help="write the pipeline for Kubeflow (IR YAML)")
    compiled.add_argument("--out", type=Path, required=True, help="file to write")
    compiled.add_argument("--preset", default="cluster", help="the steps' options (default: cluster)")
    compiled.add_argument("--cluster", type=Path, help="YAML of limits, claims, secrets (docs/operations.md)")
    compiled.set_defaults(run=run_compile)
    here = verbs.add_parser("run", help="run it on this machine")
    here.add_argument("--data", type=Path, required=True, help="your folder of CTs with reports.csv")
    _shared(here, out="run", preset="demo")
    here.set_defaults(run=run_local)


def _shared(verb: argparse.ArgumentParser, out: str, preset: str) -> None:
    verb.add_argument("--out", type=Path, default=Path(out), help=f"folder of the run (default: {out})")
    verb.add_argument("--preset", default=preset, help=f"the steps' options (default: {preset})")
    add_ports(verb)


def run_local(args: argparse.Namespace) -> int:
    from mu2llm.pipelines.demo import demo
    from mu2llm.pipelines.local import StepFailed
    from mu2llm.pipelines.settings import preset

    try:
        return demo(preset(args.preset), args.out, args.data, ports_of(args))
    except StepFailed as error:
        print(f"mu2: error: {error}", file=sys.stderr)
        return 2 if error.user_error else 1


def run_compile(args: argparse.Namespace) -> None:
    from mu2llm.pipelines.compile import compile_pipeline
    from mu2llm.pipelines.settings import ClusterSettings, preset, read_cluster

    cluster = read_cluster(args.cluster) if args.cluster else ClusterSettings()
    compile_pipeline(args.out, preset(args.preset), cluster)
    print(f"{args.out} written")

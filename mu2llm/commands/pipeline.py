"""`mu2 demo` and `mu2 pipeline`: the whole chain on this machine, or on a cluster."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from mu2llm.commands.serve import add_ports, ports_of


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    demo = commands.add_parser("demo", help="the whole pipeline on this machine: CTs in, a served model out")
    demo.add_argument("--data", type=Path, help="folder of CTs with reports.csv (default: synthetic CTs)")
    _shared(demo, out="demo", preset="demo")
    demo.set_defaults(run=run_local)

    pipeline = commands.add_parser(
        "pipeline", help="compile, submit or schedule the pipeline, or run it here"
    )
    verbs = pipeline.add_subparsers(metavar="VERB", required=True)
    compiled = verbs.add_parser("compile", help="write the pipeline for Kubeflow (IR YAML)")
    compiled.add_argument("--out", type=Path, required=True, help="file to write")
    _compiled_by(compiled)
    compiled.set_defaults(run=run_compile)
    submitted = verbs.add_parser("submit", help="start a run on Kubeflow")
    _to_kubeflow(submitted)
    submitted.add_argument("--name", help="of the run (default: the time)")
    submitted.add_argument("--wait", action="store_true", help="follow the run, and end as it ends")
    submitted.add_argument(
        "--every", type=float, default=10.0, help="seconds between two looks (default: 10)"
    )
    submitted.set_defaults(run=run_submit)
    timed = verbs.add_parser("schedule", help="start runs on Kubeflow by the clock")
    _to_kubeflow(timed)
    timed.add_argument("--name", required=True, help="of the schedule")
    timed.add_argument(
        "--cron", required=True, help="six fields, seconds first: '0 0 2 * * 0', Sundays at two"
    )
    timed.add_argument("--replace", action="store_true", help="take the place of the schedule of this name")
    timed.set_defaults(run=run_schedule)
    here = verbs.add_parser("run", help="run it on this machine")
    here.add_argument("--data", type=Path, required=True, help="your folder of CTs with reports.csv")
    _shared(here, out="run", preset="demo")
    here.set_defaults(run=run_local)


def _compiled_by(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--preset", default="cluster", help="the steps' options (default: cluster)")
    verb.add_argument("--cluster", type=Path, help="YAML of limits, claims, secrets (docs/operations.md)")


def _to_kubeflow(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--host", help="of Kubeflow Pipelines' API (default, in a pod: the cluster's own)")
    verb.add_argument("--namespace", default="mu2llm", help="of the run; '' where Kubeflow has one user")
    verb.add_argument("--token-file", type=Path, help="read before every request (or MU2_PIPELINE_TOKEN)")
    verb.add_argument("--ca", type=Path, help="certificates to trust, a PEM file")
    verb.add_argument("--ui", help="address of Kubeflow's pages, where it is not the host's")
    verb.add_argument("--experiment", default="mu2llm", help="default: mu2llm")
    verb.add_argument("--pipeline", type=Path, help="a compiled pipeline (default: compiled from the preset)")
    _compiled_by(verb)
    verb.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the run; NAME.KEY=VALUE for one setting",
    )


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
    _compile(args)
    print(f"{args.out} written")


def _compile(args: argparse.Namespace) -> None:
    from mu2llm.pipelines.compile import compile_pipeline
    from mu2llm.pipelines.settings import ClusterSettings, preset, read_cluster

    cluster = read_cluster(args.cluster) if args.cluster else ClusterSettings()
    compile_pipeline(args.out, preset(args.preset), cluster)


def run_submit(args: argparse.Namespace) -> int:
    from mu2llm.pipelines import submit

    with _package(args) as package:
        arguments = submit.parameters(package, args.param)
        place = _place(args)
        client = submit.connect(place)
        name = args.name or f"mu2llm {datetime.now():%Y-%m-%d %H:%M:%S}"
        run = submit.submit(client, place, package, arguments, experiment=args.experiment, name=name)
        print(f"run {run}: {place.page('runs', run)}", flush=True)
        return submit.follow(client, place, run, package, every=args.every) if args.wait else 0


def run_schedule(args: argparse.Namespace) -> None:
    from mu2llm.pipelines import submit

    with _package(args) as package:
        arguments = submit.parameters(package, args.param)
        place = _place(args)
        made = submit.schedule(
            submit.connect(place),
            place,
            package,
            arguments,
            experiment=args.experiment,
            name=args.name,
            cron=args.cron,
            replace=args.replace,
        )
    print(f"schedule {made}: {place.page('recurringrun', made)}")


def _place(args: argparse.Namespace) -> Any:
    from mu2llm.pipelines.submit import Place

    return Place(args.host, args.namespace, args.token_file, args.ca, args.ui)


@contextlib.contextmanager
def _package(args: argparse.Namespace) -> Iterator[Path]:
    """The compiled pipeline: the one that was given, or one of the preset."""
    if args.pipeline:
        if not args.pipeline.is_file():
            raise FileNotFoundError(f"{args.pipeline}: no such file")
        yield args.pipeline
        return
    with tempfile.TemporaryDirectory() as folder:
        args.out = Path(folder) / "pipeline.yaml"
        _compile(args)
        yield args.out

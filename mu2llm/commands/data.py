"""`mu2 data` and `mu2 corpus`: CTs and reports in, Study records and training samples out."""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# The names of mu2llm.data.ingest.READERS, and dicom; they are not imported here: help is instant.
DATASETS = ("folder", "dicom", "ct-rate", "amos-mm", "abdomen-atlas", "m3d-cap", "phantom")

# What prepare takes with --mode: settings of mu2llm.volume.prepare_frames.
SIZES = (
    ("size", 256, "rows and columns"),
    ("depth", 256, "slices"),
    ("frame_slices", 32, "slices of a frame"),
)


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    data = commands.add_parser("data", help="CTs and reports → Study records").add_subparsers(
        metavar="VERB", required=True
    )
    ingest = data.add_parser("ingest", help="check a dataset's CTs and reports and write Study records")
    ingest.add_argument("folder", nargs="?", help="the same as --root")
    ingest.add_argument("--dataset", default="folder", choices=DATASETS, help="its layout (default: folder)")
    ingest.add_argument(
        "--root",
        help="folder, s3://bucket/key, or of dicom dicomweb+https://host/path (docs/data.md: layouts)",
    )
    ingest.add_argument("--out", required=True, help="folder for studies.jsonl, rejects.jsonl, ingest.json")
    ingest.add_argument("--seed", type=int, default=0, help="of the split by patient (default: 0)")
    ingest.add_argument("--workers", type=int, help="processes that open volumes (default: one a core)")
    ingest.add_argument(
        "--scrub", choices=("on", "off"), help="names, dates … out of reports (default: on for folder, dicom)"
    )
    ingest.add_argument(
        "--key-file", help="key of the pseudonyms (dicom; else MU2_DEID_KEY_FILE, MU2_DEID_KEY)"
    )
    ingest.add_argument("--reports", help="table of the reports (dicom from a DICOMweb server)")
    ingest.add_argument("--count", type=int, help="how many phantoms to make first (dataset phantom)")
    ingest.add_argument("--preset", choices=("demo", "full"), help="of the phantoms (dataset phantom)")
    ingest.add_argument(
        "--allow-gaps", action="store_true", help="fill in missing slices of DICOM series by interpolation"
    )
    ingest.set_defaults(run=run_ingest)

    prepare = data.add_parser("prepare", help="make the frames that a model reads, once, with all cores")
    prepare.add_argument("studies", help="studies.jsonl, or the folder that data ingest wrote (or s3://)")
    prepare.add_argument("--model", help="folder of the model to train: its processor says how")
    prepare.add_argument("--mode", choices=("hu", "published"), help="without --model (docs/data.md: modes)")
    for name, value, what in SIZES:
        flag = f"--{name.replace('_', '-')}"
        prepare.add_argument(flag, type=int, help=f"{what}, with --mode (default: {value})")
    prepare.add_argument("--out", help="folder of the frames (default: frames/ beside the studies)")
    prepare.add_argument("--workers", type=int, help="processes (default: one a core)")
    prepare.set_defaults(run=run_prepare)

    overlap = data.add_parser(
        "overlap", help="which CTs stand in several ingested datasets, and in which split"
    )
    overlap.add_argument("ingested", nargs="+", help="folders that data ingest wrote")
    overlap.set_defaults(run=run_overlap)

    phantom = data.add_parser("phantom", help="write synthetic CTs with true findings and their reports")
    phantom.add_argument("root", help="folder to write")
    phantom.add_argument("--count", type=int, default=2400, help="how many CTs (default: 2400)")
    phantom.add_argument("--preset", default="demo", choices=("demo", "full"), help="how hard (docs/data.md)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=run_phantom)

    corpus = commands.add_parser("corpus", help="reports → questions, answers and cited narratives")
    verbs = corpus.add_subparsers(metavar="VERB", required=True)
    build = verbs.add_parser("build", help="the five stages")
    rewrite = verbs.add_parser("rewrite", help="reports in other words that keep every finding")
    translate = verbs.add_parser("translate", help="reports in another language, sentence by sentence")
    for verb in (build, rewrite, translate):
        _add_asking(verb)
    rewrite.add_argument("--count", type=int, default=3, help="versions of each report (default: 3)")
    rewrite.set_defaults(run=run_rewrite)
    translate.add_argument("--language", default="zh", help="to translate into (default: zh)")
    translate.set_defaults(run=run_translate)
    build.add_argument(
        "--judge-llm", default="", help="another endpoint for the judge (key: MU2_JUDGE_LLM_KEY)"
    )
    build.add_argument("--judge-model", default="", help="the judge's model (default: the writer's)")
    build.add_argument(
        "--stages",
        default="",
        help="run only these, which follow one another: questions,answers,screen,refine,narrative",
    )
    build.add_argument("--languages", default="en", help="of the samples: en, or en,zh with an endpoint")
    build.add_argument(
        "--most-alike", type=int, default=5000, help="of the same question and answer, keep so many (0: all)"
    )
    build.set_defaults(run=run_corpus)


def _add_asking(verb: argparse.ArgumentParser) -> None:
    """What each verb of the corpus reads, writes and asks."""
    verb.add_argument("--studies", required=True, help="studies.jsonl, or s3://bucket/key")
    verb.add_argument(
        "--out", required=True, help="folder for samples.jsonl, drops.jsonl, corpus.json; or s3://"
    )
    verb.add_argument(
        "--llm", default="rules", help="rules (no network), or an endpoint: http://host:8000/v1"
    )
    verb.add_argument("--model", default="", help="the model that the endpoint serves (key: MU2_LLM_KEY)")
    verb.add_argument("--concurrency", type=int, default=16, help="requests at once (default: 16)")
    verb.add_argument("--timeout", type=float, default=300.0, help="seconds until an answer is late (300)")


def run_ingest(args: argparse.Namespace) -> None:
    from mu2llm.data.ingest import ingest

    if (args.folder is None) == (args.root is None):
        raise ValueError("data ingest: give the dataset's folder once, as FOLDER or as --root")
    phantom = {name: getattr(args, name) for name in ("count", "preset") if getattr(args, name) is not None}
    summary = ingest(
        args.dataset,
        args.folder or args.root,
        args.out,
        seed=args.seed,
        workers=args.workers,
        scrub=None if args.scrub is None else args.scrub == "on",
        key_file=args.key_file,
        reports=args.reports,
        allow_gaps=args.allow_gaps,
        **phantom,
    )
    print(json.dumps(summary, indent=1, ensure_ascii=False))


def run_prepare(args: argparse.Namespace) -> int:
    from mu2llm import storage
    from mu2llm.data.prepare import prepare_dataset
    from mu2llm.data.records import Study, read_jsonl

    given = {name: getattr(args, name) for name, _, _ in SIZES if getattr(args, name) is not None}
    if (args.model is None) == (args.mode is None) or (args.model and given):
        raise ValueError("data prepare: give either --model, or --mode with --size, --depth, --frame-slices")
    if args.model:
        from mu2llm.model import Mu2Processor

        preparation = Mu2Processor.from_pretrained(args.model).preparation
    else:
        preparation = {"mode": args.mode} | {name: value for name, value, _ in SIZES} | given
    args.studies = str(storage.plain(args.studies))
    name = args.studies if args.studies.endswith(".jsonl") else f"{args.studies.rstrip('/')}/studies.jsonl"
    if storage.is_remote(name) and not args.out:
        raise ValueError("data prepare: give --out, a local folder for the frames of studies in the store")
    if args.out and storage.is_remote(storage.plain(args.out)):
        raise ValueError(f"data prepare: --out {args.out}: frames go to a local folder; give one")
    out = Path(storage.plain(args.out)) if args.out else Path(name).parent / "frames"
    with TemporaryDirectory() as folder:
        studies = list(read_jsonl(storage.fetch(name, folder), Study))
    summary = prepare_dataset(studies, preparation, out, workers=args.workers)
    print(json.dumps({name: value for name, value in summary.items() if name != "preparation"}, indent=1))
    return 1 if summary["rejects"] else 0


def run_overlap(args: argparse.Namespace) -> None:
    from mu2llm.data.overlap import shared_volumes

    print(json.dumps(shared_volumes(args.ingested), indent=1, ensure_ascii=False))


def run_phantom(args: argparse.Namespace) -> None:
    from mu2llm.data.phantom import write_phantoms

    write_phantoms(args.root, args.count, preset=args.preset, seed=args.seed)
    print(f"{args.count} synthetic CTs with reports.csv and labels.csv in {args.root}")


def run_corpus(args: argparse.Namespace) -> None:
    from mu2llm.corpus.build import build_corpus

    summary = build_corpus(
        args.studies,
        args.out,
        judge_llm=args.judge_llm,
        judge_model=args.judge_model,
        stages=args.stages,
        languages=args.languages,
        most_alike=args.most_alike,
        **_asking(args),
    )
    print(json.dumps(summary, indent=1, ensure_ascii=False))


def run_rewrite(args: argparse.Namespace) -> None:
    from mu2llm.corpus.jobs import rewrite_reports

    summary = rewrite_reports(args.studies, args.out, args.count, **_asking(args))
    print(json.dumps(summary, indent=1, ensure_ascii=False))


def run_translate(args: argparse.Namespace) -> None:
    from mu2llm.corpus.jobs import translate_reports

    summary = translate_reports(args.studies, args.out, args.language, **_asking(args))
    print(json.dumps(summary, indent=1, ensure_ascii=False))


def _asking(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "llm": args.llm,
        "model": args.model,
        "concurrency": args.concurrency,
        "asking": {"timeout": args.timeout},
    }

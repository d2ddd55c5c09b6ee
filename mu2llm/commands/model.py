"""`mu2 train`, `preferences`, `evaluate`, `compare`, `green`, `explain`, `convert`: models made, measured."""

import argparse
import json
from pathlib import Path
from typing import Any

JUDGES = "'rules', the folder of a GREEN checkpoint, or an endpoint: http://host:8000/v1"
JUDGE_MODEL = "the model at an endpoint that judges (key: MU2_JUDGE_LLM_KEY)"
STORE = "~/.cache/mu2llm/judge"


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    new = commands.add_parser("new-model", help="a model to start from: small and random, or of parts")
    parts = new.add_mutually_exclusive_group(required=True)
    parts.add_argument(
        "studies", nargs="?", help="studies.jsonl: a small model, its tokenizer of the reports"
    )
    parts.add_argument("--decoder", help="folder of a causal language model with its tokenizer")
    new.add_argument("--vision", help="M3D-CLIP's pretrained_ViT.bin, with --decoder")
    new.add_argument("--mode", choices=("hu", "published"), help="how volumes are prepared, with --decoder")
    new.add_argument("--window", choices=("plain", "soft-lung"), help="of mode hu (default: plain)")
    new.add_argument("--whole", action="store_true", help="of mode hu: no crop to the body")
    new.add_argument("--out", required=True, help="model folder to write")
    new.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    new.set_defaults(run=run_new)

    train = commands.add_parser("train", help="one training stage: vision, sft or dpo (torchrun, DeepSpeed)")
    train.add_argument("stage", choices=("vision", "sft", "dpo"))
    source = train.add_mutually_exclusive_group()
    source.add_argument("--config", help="YAML of settings (docs/training.md)")
    source.add_argument("--preset", default="tiny", help="named settings to start from (default: tiny)")
    train.add_argument("--nproc", type=int, default=1, help="processes on this machine (default: 1)")
    train.add_argument(
        "--rounds", type=int, help="iterated DPO: pairs are drawn anew from each round's model"
    )
    train.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, such as model=DIR out=DIR"
    )
    train.set_defaults(run=run_train)

    build = commands.add_parser(
        "preferences", help="drafts ranked by a judge → pairs for DPO"
    ).add_subparsers(metavar="VERB", required=True)
    pairs = build.add_parser("build", help="draw candidates, score them, keep best against worst")
    pairs.add_argument("model", help="model folder")
    pairs.add_argument("studies", help="studies.jsonl")
    pairs.add_argument("--out", required=True, help="folder for preferences.jsonl")
    pairs.add_argument("--preset", default="tiny", help="named settings to start from (default: tiny)")
    pairs.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as candidates=8 temperature=1.0"
    )
    pairs.set_defaults(run=run_preferences)

    evaluate = commands.add_parser("evaluate", help="drafts of held-out studies against their reports")
    evaluate.add_argument("model", nargs="?", help="model folder")
    evaluate.add_argument("studies", nargs="?", help="studies.jsonl; its test split is used")
    evaluate.add_argument("--model", dest="model_option", metavar="DIR", help="another way to name the model")
    evaluate.add_argument("--studies", dest="studies_option", metavar="FILE", help="and the studies")
    evaluate.add_argument(
        "--out", required=True, help="folder for evaluation.json, drafts.jsonl, report.html"
    )
    evaluate.add_argument("--judge", default="rules", help=f"{JUDGES} (default: rules)")
    evaluate.add_argument("--judge-model", default="", help=JUDGE_MODEL)
    evaluate.add_argument("--store", help="folder for a model judge's completions (default: OUT/judge)")
    evaluate.add_argument(
        "--frames", help="prepared frames, missing ones are made (default: frames/ beside STUDIES, if there)"
    )
    evaluate.add_argument("--limit", type=int, help="only the first studies of the split")
    evaluate.add_argument("--bertscore", help="folder of an encoder such as roberta-large, for BERTScore")
    evaluate.add_argument(
        "--preferences", help="preferences.jsonl that the model was trained on: names its judge"
    )
    evaluate.add_argument("--json", action="store_true", help="print evaluation.json in place of a table")
    evaluate.set_defaults(run=run_evaluate)

    compare = commands.add_parser(
        "compare", help="two evaluations of the same studies, with the paired interval"
    )
    compare.add_argument("first", help="evaluation folder or evaluation.json")
    compare.add_argument("second", help="evaluation folder or evaluation.json")
    compare.add_argument(
        "--difference",
        type=float,
        action="append",
        help="tell how many studies would show this difference of GREEN (may be repeated)",
    )
    compare.add_argument("--json", action="store_true", help="print JSON in place of sentences")
    compare.set_defaults(run=run_compare)

    green = commands.add_parser("green", help="GREEN of candidate reports against their references")
    green.add_argument("reference", nargs="?", help="text file that is one report")
    green.add_argument("candidate", nargs="?", help="text file that is one report")
    green.add_argument("--refs", help="many references: a text file, one report a line, or .jsonl (docs)")
    green.add_argument("--hyps", help="their candidates, line for line")
    green.add_argument("--judge", default="rules", help=f"{JUDGES} (default: rules)")
    green.add_argument("--judge-model", default="", help=JUDGE_MODEL)
    green.add_argument("--out", help="JSON lines to write, one a pair, with --refs and --hyps")
    green.add_argument(
        "--store", default=STORE, help="folder for a model judge's completions (default: %(default)s)"
    )
    green.set_defaults(run=run_green)

    explain = commands.add_parser("explain", help="draft one CT's report here, and show where it looked")
    explain.add_argument("model", help="model folder")
    explain.add_argument("volume", help="NIfTI file, DICOM folder or zip")
    explain.add_argument("--out", required=True, help="folder for draft.txt, saliency.nii.gz, saliency.png")
    explain.add_argument("--question", help="what to ask (default: the report)")
    explain.set_defaults(run=run_explain)

    convert = commands.add_parser("convert", help="a checkpoint in the published layout → ours, or back")
    convert.add_argument("source")
    convert.add_argument("target")
    convert.add_argument(
        "--volume-token-id", type=int, help="the placeholder's id (default: the tokenizer's <im_patch>)"
    )
    convert.add_argument("--reverse", action="store_true", help="ours → the published layout")
    convert.set_defaults(run=run_convert)


def run_new(args: argparse.Namespace) -> None:
    if args.decoder:
        from mu2llm.model.assemble import assemble
        from mu2llm.storage import whole_folder
        from mu2llm.volume import PLAIN_WINDOW, SOFT_LUNG_WINDOW

        hu: dict[str, Any] = {"window": SOFT_LUNG_WINDOW if args.window == "soft-lung" else PLAIN_WINDOW}
        hu["crop_to_body"] = not args.whole
        with whole_folder(Path(args.out)) as folder:
            for part in assemble(args.decoder, vision=args.vision, mode=args.mode, seed=args.seed, **hu):
                part.save_pretrained(folder)
    elif args.vision or args.mode or args.window or args.whole:
        raise ValueError(
            "--vision, --mode, --window and --whole go with --decoder: a small model has its own ways"
        )
    else:
        from mu2llm.components.start import write_start_model

        write_start_model(args.studies, args.out, seed=args.seed)
    print(f"{args.out} written")


def run_train(args: argparse.Namespace) -> None:
    from mu2llm.training import config
    from mu2llm.training.launch import launch

    if args.rounds is not None:
        from mu2llm.training.rounds import iterate

        if args.stage != "dpo" or args.config:
            raise ValueError("--rounds goes with the stage dpo and a --preset: a round draws its own pairs")
        print(json.dumps(iterate(args.rounds, args.preset, args.overrides, args.nproc)[-1], indent=1))
        return
    if args.config:
        settings = config.load(args.config, [f"stage={args.stage}", *args.overrides])
    else:
        settings = config.from_preset(args.preset, args.stage, args.overrides)
    launch(args.stage, config.save(settings), args.nproc)


def run_preferences(args: argparse.Namespace) -> None:
    from mu2llm.training.config import apply_overrides, preset_settings
    from mu2llm.training.preferences import build_preferences

    settings = apply_overrides(preset_settings(args.preset, "preferences"), args.overrides)
    summary = build_preferences(args.model, args.studies, args.out, **settings)
    print(json.dumps(summary, indent=1, ensure_ascii=False))


def run_evaluate(args: argparse.Namespace) -> int:
    """Exit status 1 where no study could be scored."""
    from mu2llm.evaluation import show
    from mu2llm.evaluation.evaluate import evaluate

    numbers = evaluate(
        _named("MODEL", args.model, args.model_option),
        _named("STUDIES", args.studies, args.studies_option),
        args.out,
        judge=args.judge,
        judge_model=args.judge_model,
        store=args.store,
        cache=args.frames,
        limit=args.limit,
        bertscore=args.bertscore,
        preferences=args.preferences,
    )
    if args.json:
        print(json.dumps(numbers, indent=1, ensure_ascii=False))
    else:
        print(f"\n{show.evaluation(numbers)}\n\nThe page: {Path(args.out) / 'report.html'}")
    return int(numbers["green"] is None)


def _named(name: str, place: str | None, option: str | None) -> str:
    """What is named once, by its place or by its option."""
    if bool(place) == bool(option):
        raise ValueError(f"name {name} once: by its place, or with --{name.lower()}")
    return place or option or ""


def run_compare(args: argparse.Namespace) -> None:
    from mu2llm.evaluation import show
    from mu2llm.evaluation.evaluate import compare

    wanted = {"differences": args.difference} if args.difference else {}
    found = compare(args.first, args.second, **wanted)
    print(json.dumps(found, indent=1, ensure_ascii=False) if args.json else show.comparison(found))


def run_green(args: argparse.Namespace) -> int:
    """Exit status 1 where no pair could be scored."""
    single, many = (args.reference, args.candidate), (args.refs, args.hyps)
    if not (all(single) and not any(many)) and not (all(many) and not any(single)):
        raise ValueError(
            "give two files that are one report each, or --refs and --hyps with one report a line"
        )
    store = Path(args.store).expanduser()
    if args.refs:
        from mu2llm.evaluation.scoring import green_of_files, show

        about = {"judge_model": args.judge_model, "out": args.out, "store": store}
        summary = green_of_files(args.refs, args.hyps, args.judge, **about)
        print(show(summary))
        return int(summary["green"] is None)
    if args.out:
        raise ValueError("--out goes with --refs and --hyps: a single pair is printed")
    from mu2llm.evaluation.judges import find_judge

    texts = [Path(name).read_text(encoding="utf-8") for name in single]
    judge = find_judge(args.judge, store, model=args.judge_model)
    (result,) = judge.score([texts[0]], [texts[1]])
    print(result.completion)
    why = f"{result.status}: {result.reason}"
    print(f"GREEN {result.score:.3f}" if result.score is not None else f"GREEN none ({why})")
    return int(result.score is None)


def run_explain(args: argparse.Namespace) -> None:
    from mu2llm import NOTICE
    from mu2llm.evaluation.explain import explain

    asked = {"question": args.question} if args.question else {}
    print(f"{NOTICE}\n\n{explain(args.model, args.volume, args.out, **asked)}\n")
    print(f"Where it looked: {Path(args.out) / 'saliency.png'} and saliency.nii.gz, red or 1 the most")


def run_convert(args: argparse.Namespace) -> None:
    from mu2llm.model.convert import convert, revert

    if args.reverse:
        if args.volume_token_id is not None:
            raise ValueError("--volume-token-id does not go with --reverse: the published layout holds none")
        revert(args.source, args.target)
    else:
        convert(args.source, args.target, image_token_id=args.volume_token_id)
    print(f"{args.target} written")

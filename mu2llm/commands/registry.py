"""`mu2 register`, `registry`, `export`, `deploy`: versions, gate, promotion, roll back, and into service."""

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PORTS = ("grpc", "http", "metrics")
DATA = {  # that a model is made from
    "studies": "studies.jsonl of ingest",
    "corpus": "samples.jsonl of the corpus",
    "preferences": "preferences.jsonl that DPO read",
}
LIMITS = {  # of mu2llm.serving.export; what is not given stays as the repository has it
    "max_queue": "requests that may wait",
    "max_batch": "requests that are worked on at a time",
    "max_tokens": "the most tokens that a request may ask for",
    "max_volume_bytes": "the largest volume that may be sent",
}
DATABASE = "sqlite:///demo/mlflow/mlflow.db"


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    register = commands.add_parser("register", help="log a model with its evaluation and make it a version")
    register.add_argument("model", help="model folder")
    register.add_argument("evaluation", help="evaluation.json of this model")
    register.add_argument(
        "--licence", help="of the model, such as apache-2.0, for the gate's rule of that kind"
    )
    register.add_argument("--data-licence", help="of what it was trained on")
    for kind, about in DATA.items():
        register.add_argument(f"--{kind}", type=Path, help=f"{about}, whose SHA-256 the version keeps")
    _shared(register, run_register)

    verbs = commands.add_parser("registry", help="the versions of the model").add_subparsers(
        metavar="VERB", required=True
    )
    _shared(verbs.add_parser("list", help="all versions, newest first"), run_list)
    for name, run, about in (
        ("show", run_show, "a version's model card"),
        ("gate", run_gate, "measure a version against the rules"),
        ("promote", run_promote, "have a version pass the gate and make it the champion"),
    ):
        verb = verbs.add_parser(name, help=about)
        verb.add_argument("version", help="number or alias, such as challenger")
        if name != "show":
            default = "mlflow/registry/gate.yaml" if name == "gate" else "those of its last gate"
            verb.add_argument("--rules", help=f"YAML of rules (default: {default})")
        _shared(verb, run)
    _shared(verbs.add_parser("history", help="every promotion and rollback, oldest first"), run_history)
    _shared(verbs.add_parser("rollback", help="the champion before this one becomes it again"), run_rollback)

    saved = verbs.add_parser("backup", help="copy the server's database and artifacts")
    saved.add_argument("folder", type=Path, help="of all backups")
    saved.add_argument("--keep", type=int, default=14, help="states of the database that stay (default: 14)")
    saved.set_defaults(run=run_backup)
    restored = verbs.add_parser("restore", help="put a backup where nothing is")
    restored.add_argument("record", type=Path, help="the backup's <time>.json")
    restored.add_argument("--artifacts-only", action="store_true", help="where pg_restore is run apart")
    restored.set_defaults(run=run_restore)
    for verb in (saved, restored):
        verb.add_argument("--database", help="MLflow's backend store (default: MLFLOW_BACKEND_STORE_URI)")
        verb.add_argument("--artifacts", required=True, help="MLflow's artifacts, a folder or s3:// address")

    export = commands.add_parser("export", help="a version for another system").add_subparsers(
        metavar="VERB", required=True
    )
    triton = export.add_parser(
        "triton",
        help="as an entry of a Triton model repository",
        description="The engine and the limits that are not given stay as the repository has them.",
    )
    triton.add_argument("version", nargs="?", default="champion", help="number or alias (default: champion)")
    triton.add_argument("--repository", default="demo/serving/repository", help="folder or s3:// address")
    triton.add_argument("--engine", choices=("batch", "vllm"), help="how drafts are written")
    for limit, about in LIMITS.items():
        triton.add_argument(f"--{limit.replace('_', '-')}", type=int, help=about)
    _shared(triton, run_export)

    deploy = commands.add_parser("deploy", help="a version into service on this machine, or back if it fails")
    which = deploy.add_mutually_exclusive_group()
    which.add_argument("--alias", default="champion", help="of the version (default: champion)")
    which.add_argument("--version", type=int, help="its number")
    deploy.add_argument(
        "--state", type=Path, default=Path("demo/serving"), help="the server's folder (default: demo/serving)"
    )
    deploy.add_argument("--repository", type=Path, help="Triton model repository (default: STATE/repository)")
    for port in PORTS:
        deploy.add_argument(f"--{port}-port", type=int, help="default: that of the running server")
    _shared(deploy, run_deploy)


def _shared(verb: argparse.ArgumentParser, run: Any) -> None:
    verb.add_argument(
        "--tracking-uri", default=DATABASE, help=f"MLflow's server or database (default: {DATABASE})"
    )
    verb.add_argument("--name", default="mu2llm", help="of the registered model (default: mu2llm)")
    verb.set_defaults(run=run)


def _where(args: argparse.Namespace) -> dict[str, Any]:
    """The registry that is meant. A database that is not there is a mistake here, and is not made."""
    if args.run is not run_register and args.tracking_uri.startswith("sqlite:///"):
        database = Path(args.tracking_uri.removeprefix("sqlite:///"))
        if not database.is_file():
            raise FileNotFoundError(f"no registry at {database}: run `mu2 demo`, or give --tracking-uri")
    return {"tracking_uri": args.tracking_uri, "name": args.name}


def run_register(args: argparse.Namespace) -> None:
    from mu2llm.registry import register

    given = {"licence": args.licence, "data_licence": args.data_licence}
    tags = {name: value for name, value in given.items() if value}
    data = {kind: path for kind in DATA if (path := getattr(args, kind))}
    register(args.model, args.evaluation, tags=tags, data=data, **_where(args))


def run_list(args: argparse.Namespace) -> None:
    from mu2llm.registry import versions

    found = versions(**_where(args))
    if not found:
        raise ValueError(
            f"nothing is registered as {args.name!r} in {args.tracking_uri}: `mu2 register` does it"
        )
    for version in found:
        created = datetime.fromtimestamp(version["created"] / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        tags = version["tags"]
        print(
            f"{version['version']:>4}  {created}  GREEN {tags.get('green', '–'):<7} "
            f"finding F1 {tags.get('finding_macro_f1', '–'):<7} gate {tags.get('gate', 'not yet'):<8} "
            f"{', '.join(version['aliases'])}"
        )


def run_history(args: argparse.Namespace) -> None:
    from mu2llm.registry import history

    for event in history(**_where(args)):
        print(
            f"{event['at'][:19].replace('T', ' ')}  {event['action']:<8}  version {event['version']} "
            f"(before: {event['previous'] or 'none'})  by {event['by']}"
        )


def run_show(args: argparse.Namespace) -> None:
    from mu2llm.registry import show

    version = show(args.version, **_where(args))
    aliases = ", ".join(version["aliases"]) or "no alias"
    print(f"Version {version['version']} ({aliases})\n\n{version['card']}")


def run_gate(args: argparse.Namespace) -> int:
    from mu2llm.registry import gate

    result = gate(args.version, rules=args.rules, **_where(args))
    for check in result.checks:
        print(f"{'passed' if check.passed else 'FAILED':<7} {check.name}: {check.reason}")
    return 0 if result.passed else 1


def run_promote(args: argparse.Namespace) -> None:
    from mu2llm.registry import promote

    _told(promote(args.version, rules=args.rules, **_where(args)))


def run_rollback(args: argparse.Namespace) -> None:
    from mu2llm.registry import rollback

    _told(rollback(**_where(args)))


def _told(event: dict[str, Any]) -> None:
    print(f"champion: version {event['version']} (before: {event['previous'] or 'none'}), by {event['by']}")


def run_backup(args: argparse.Namespace) -> None:
    from mu2llm.registry.backup import backup

    record = backup(_database(args), args.artifacts, args.folder, keep=args.keep)
    size = sum(it["size"] for it in record["artifacts"].values()) / 1e9
    print(f"{args.folder}/{record['time']}.json: {len(record['artifacts'])} artifacts, {size:.3f} GB")


def run_restore(args: argparse.Namespace) -> None:
    from mu2llm.registry.backup import restore

    count = restore(args.record, None if args.artifacts_only else _database(args), args.artifacts)
    print(f"{'' if args.artifacts_only else 'the database and '}{count} artifacts are restored")


def _database(args: argparse.Namespace) -> str:
    """The backend store; its address may hold a password, so the environment is a better place than words."""
    given = args.database or os.environ.get("MLFLOW_BACKEND_STORE_URI")
    if not given:
        raise ValueError("--database is missing: MLflow's backend store, sqlite:///… or postgresql://…")
    return given


def run_export(args: argparse.Namespace) -> None:
    from mu2llm.components.rollout import export
    from mu2llm.registry import resolve

    where = _where(args)
    version = resolve(args.version, **where)
    given = {name: getattr(args, name) for name in ("engine", *LIMITS)}
    limits = {name: value for name, value in given.items() if value is not None}
    export(version, args.tracking_uri, args.repository, args.name, **limits)
    print(f"version {version} stands in {args.repository}")


def run_deploy(args: argparse.Namespace) -> None:
    from mu2llm.components.rollout import deploy
    from mu2llm.registry import resolve

    where = _where(args)
    version = resolve(args.version or args.alias, **where)
    chosen = {f"{name}_port": getattr(args, f"{name}_port") for name in PORTS}
    running = deploy(
        version,
        args.tracking_uri,
        str(args.repository or args.state / "repository"),
        name=args.name,
        state_dir=str(args.state),
        **{name: port for name, port in chosen.items() if port},
    )
    print(f"version {running.version} answers at {running.url}; every answer names its version")

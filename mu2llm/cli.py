"""The command `mu2`: one verb per job.

A user's mistake ends with one line on stderr, `mu2: error: …`, and exit status 2. Anything else that goes
wrong ends with one line and status 1. `--debug` shows the traceback of both.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from mu2llm import NOTICE, __version__
from mu2llm.commands import data, model, pipeline, registry, serve


class Parser(argparse.ArgumentParser):
    """Wrong arguments end with one line too, that says where help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"mu2: error: {message} (see: {self.prog} --help)\n")


def parser() -> Parser:
    """The parser of the whole command."""
    top = Parser(
        prog="mu2", description="Draft radiology reports from 3D CT: data to endpoint.", epilog=NOTICE
    )
    top.add_argument("--version", action="version", version=f"mu2llm {__version__}")
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (pipeline, data, model, registry, serve):
        module.add(commands)
    return top


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments. argparse takes a verb's `key=value` words in one place only; users do not."""
    top = parser()
    args, rest = top.parse_known_args(words)
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(settings) < len(rest) or (settings and not hasattr(args, "overrides")):
        strange = next((word for word in rest if word not in settings), rest[0])
        top.error(f"unknown argument {strange!r}")
    if settings:
        args.overrides = [*args.overrides, *settings]
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs `mu2`; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in words
    args = parse([word for word in words if word != "--debug"])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars over loaded tensors
    if debug:
        os.environ["MU2_DEBUG"] = "1"  # for the processes of pipeline steps
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("mu2: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `mu2 … | head`: the reader has had enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"mu2: error: {line(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | OSError) else 1


def line(error: Exception) -> str:
    """One line about an error: the file first where the system complains, the type where it is our fault."""
    if isinstance(error, FileExistsError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename} is a file where a folder is wanted: name another place"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ValueError | OSError | RuntimeError):
        return text
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; install it with: pip install 'mu2llm[train,platform,client]'"
    return f"{type(error).__name__}: {text} (run with --debug for the traceback)"


if __name__ == "__main__":
    sys.exit(main())

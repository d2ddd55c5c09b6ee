"""A new version under a running server: tried alone, switched to, asked, switched back from when it fails.

The server loads the new version beside the old one and lets the old one go when its drafts are whole: no
request fails, and at no time is a version served that is not whole. For that moment both stand in memory.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mu2llm.serving import server, wire
from mu2llm.serving.export import MODEL, served_version, switch, verify
from mu2llm.serving.server import Server, ServerError
from mu2llm.storage.lock import lock

SMOKE_TOKENS = 8
RETRIES = 8  # of the question to a server that has been switched, which may be full: four minutes


class DeployError(RuntimeError):
    """The version was not deployed; the message says what is served."""


def deploy(
    repository: str | Path,
    version: int,
    *,
    state_dir: str | Path,
    volume_roots: Sequence[str] = (),
    **ports: int,
) -> Server:
    """Has a placed version served, by the server of `state_dir` or one that is started; returns the server.

    Args:
        repository: with the entry, as `place` made it.
        version: the entry's number.
        state_dir, volume_roots, ports: as of `server.start`. A running server keeps its own where none are
            given, and is replaced where others are.

    Raises `DeployError` when the version fails: then the version before it is served as it was. Of two calls
    at a time the second is told.
    """
    repository = Path(repository)
    with _alone(repository):
        running = server.status(state_dir)
        for name, port in ports.items():  # before a server is stopped for its new ports
            if running is None or port not in running.ports.values():
                server.check_free(name.removesuffix("_port"), port)
        entry = repository / MODEL / str(version)
        verify(entry)
        try:
            smoke(entry / "model")
        except RuntimeError as error:
            raise DeployError(
                f"version {version} fails its trial, and was not switched to: {error}"
            ) from error
        before = _served(repository)
        try:
            return _serve(repository, version, state_dir, volume_roots, ports)
        except (RuntimeError, OSError, ValueError) as error:
            failed = f"version {version} could not be served"
            if before is None and running is None:
                raise DeployError(f"{failed}: {error}") from error
            try:
                if before is not None:
                    switch(repository, before)
                if running:
                    volume_roots, ports = running.volume_roots, running.ports
                    repository, before = Path(running.repository), running.version
                assert before is not None
                _serve(repository, before, state_dir, volume_roots, ports)
            except (RuntimeError, OSError, ValueError) as second:
                raise DeployError(
                    f"{failed} ({error}), nor could version {before} again ({second})"
                ) from error
            raise DeployError(f"{failed}, version {before} is again: {error}") from error


def _serve(
    repository: Path, version: int, state_dir: str | Path, roots: Sequence[str], ports: dict[str, int]
) -> Server:
    """By the server that runs, where it may stay as it is, else by one that is started."""
    switch(repository, version)
    running = server.status(state_dir)
    if running:
        ports, roots = {**running.ports, **ports}, list(roots) or running.volume_roots
        kept = (running.repository, running.ports, running.volume_roots)
        if kept == (str(repository.resolve()), ports, roots):
            running = server.reload(state_dir)
            ask(running)
            return running
        server.stop(state_dir)
    running = server.start(repository, state_dir=state_dir, volume_roots=roots, **ports)
    ask(running)
    return running


def ask(running: Server) -> None:
    """A draft of a phantom, as any client gets it; `ServerError` when another version answers."""
    from mu2llm.serving.client import report

    draft = report(phantom(), url=running.url, max_tokens=SMOKE_TOKENS, retries=RETRIES)
    for _ in draft:
        pass
    if draft.model_version != str(running.version):
        raise ServerError(f"version {draft.model_version} answered in place of {running.version}")


def smoke(model: str | Path) -> None:
    """Has a model folder draft a phantom, in a worker of its own; `RuntimeError` with the reason."""
    ours, theirs = socket.socketpair()
    # fmt: off
    command = [
        sys.executable, "-P", "-m", "mu2llm.serving.worker", "--model", str(model), "--version", "smoke",
        "--max-queue", "1", "--max-batch", "1", "--max-tokens", str(SMOKE_TOKENS),
        "--fd", str(theirs.fileno()),
    ]
    # fmt: on
    with ours, theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
        theirs.close()
        stream = ours.makefile("rb")
        try:
            if (first := wire.receive(stream)) is None or first[0]["type"] == "fail":
                said = process.communicate()[1].strip() or "the model's process ended without a word"
                print(said, file=sys.stderr)
                raise RuntimeError(said.splitlines()[-1].removeprefix("mu2: error: "))
            header = {"id": 1, "type": "ask", "body": "VOLUME", "values": {"MAX_TOKENS": SMOKE_TOKENS}}
            wire.send(ours, header, phantom())
            while (message := wire.receive(stream)) is not None and message[0]["type"] == "piece":
                pass
            if message is None or message[0]["type"] == "fail":
                raise RuntimeError(message[0]["message"] if message else "the model's process ended")
            wire.send(ours, {"type": "goodbye"})
        finally:
            process.terminate()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def phantom() -> bytes:
    """A CT that no patient stands behind, as the bytes of a NIfTI file."""
    import nibabel
    import numpy as np

    from mu2llm.volume.phantom import PRESETS, Findings, render

    volume = render(Findings(), PRESETS["demo"], np.random.default_rng(0))
    return nibabel.Nifti1Image(volume.array.astype(np.int16), volume.affine).to_bytes()


def _served(repository: Path) -> int | None:
    try:
        return served_version(repository)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _alone(repository: Path) -> Iterator[None]:
    """Holds the repository's lock, which the system lets go of whatever becomes of this process."""
    folder = repository / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".deploying").open("w") as file:
        taken = f"another deployment to {repository} is under way: wait until it has ended"
        lock(file, DeployError(taken))
        yield

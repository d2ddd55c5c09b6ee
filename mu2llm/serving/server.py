"""Starts, watches and stops a local tritonserver. It listens on 127.0.0.1 only.

What runs is written in `<state_dir>/server.json`; the server's log is `<state_dir>/tritonserver.log`. The
server lives in a session of its own, so that Ctrl-C in a terminal reaches the caller and not the server.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from mu2llm.serving.export import MODEL, served_version, verify
from mu2llm.serving.triton_binary import find_tritonserver, python_environment, working_folder

HOST = "127.0.0.1"
STATE = "server.json"
AUDIT = "audit.jsonl"
KEY_HEADER = "mu2-admin"
PYTHON_PROCESSES = ("triton_python_backend_stub", "mu2llm.serving.worker", "VLLM::")
LOG_LINES = 20
DRAIN_SECONDS = 120  # for the drafts that are under way when the server is stopped


class ServerError(RuntimeError):
    """The server did not come up, or does not go down."""


@dataclass(frozen=True)
class Server:
    """A server as server.json describes it; `created` tells it from a reused pid."""

    pid: int
    created: float
    grpc_port: int
    http_port: int
    metrics_port: int
    repository: str
    version: int
    log: str
    key: str = field(repr=False)  # opens the interface that loads models
    volume_roots: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The address that `mu2llm.serving.client` takes."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def ports(self) -> dict[str, int]:
        """As `start` takes them."""
        return {f"{name}_port": getattr(self, f"{name}_port") for name in ("grpc", "http", "metrics")}


def start(
    repository: str | Path,
    *,
    state_dir: str | Path,
    grpc_port: int = 8001,
    http_port: int = 8000,
    metrics_port: int = 8002,
    volume_roots: Sequence[str] = (),
    ready_seconds: float = 600,
) -> Server:
    """Starts tritonserver on an exported repository and returns when the model is ready.

    Args:
        repository: made by `export_triton`; the served version's manifest is checked first.
        state_dir: where server.json and the log go.
        volume_roots: folders and s3:// prefixes below which VOLUME_URI may point; none by default.
        ready_seconds: how long loading may take.

    Raises `ServerError` naming a port in use, a server that runs already, or, with the log's last lines on
    stderr, a start that failed; nothing is left running then.
    """
    repository, state_dir = Path(repository).resolve(), Path(state_dir).resolve()
    if running := status(state_dir):
        raise ServerError(
            f"a server already runs for {state_dir} (pid {running.pid}): "
            f"`mu2 serve --stop --state {state_dir}` stops it"
        )
    binary, environment = find_tritonserver(), python_environment()
    version = served_version(repository)
    verify(repository / MODEL / str(version))
    ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
    for name, port in ports.items():
        check_free(name, port)
    if stale := _read_state(state_dir):  # of a server that was killed
        _clean_up(stale.pid, stale.grpc_port)

    state_dir.mkdir(parents=True, exist_ok=True)
    roots = [_checked_root(root) for root in volume_roots]
    environment["MU2_VOLUME_ROOTS"] = ",".join(roots)
    environment["MU2_AUDIT_LOG"] = str(state_dir / AUDIT)
    key = secrets.token_hex(16)
    log = state_dir / "tritonserver.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(binary, repository, ports, key),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=working_folder(),
            start_new_session=True,
        )
    try:
        created = psutil.Process(process.pid).create_time()
        about = (str(repository), version, str(log), key, roots)
        server = Server(process.pid, created, grpc_port, http_port, metrics_port, *about)
        _write_state(state_dir, server)
        _wait_ready(process, server, ready_seconds)
    except BaseException as error:  # Ctrl-C too: a server is never left behind
        process.kill()
        process.wait()
        _clean_up(process.pid, grpc_port)
        (state_dir / STATE).unlink(missing_ok=True)
        if isinstance(error, ServerError):
            print(_last_lines(log), file=sys.stderr)
        raise
    return server


def reload(state_dir: str | Path, *, seconds: float = 600) -> Server:
    """Has the running server load the version that config.pbtxt names now, and returns when it serves that.

    Requests go on meanwhile, to the version before; drafts that are under way end with it. Raises
    `ServerError` with Triton's reason when the version does not load: then the one before goes on.
    """
    server = status(state_dir)
    if server is None:
        raise ServerError(f"no server runs for {state_dir}: `mu2 serve` starts one")
    version = served_version(server.repository)
    verify(Path(server.repository) / MODEL / str(version))
    request = urllib.request.Request(
        f"http://{HOST}:{server.http_port}/v2/repository/models/{MODEL}/load",
        data=b"{}",
        headers={KEY_HEADER: server.key, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            pass
    except urllib.error.HTTPError as error:
        raise ServerError(f"version {version} does not load ({server.log}): {_reason(error)}") from None
    except OSError as error:
        raise ServerError(f"the server does not answer while it loads version {version}: {error}") from None
    loaded = replace(server, version=version)
    _write_state(Path(state_dir), loaded)
    return loaded


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(json.loads(error.read())["error"].split())
    except (ValueError, KeyError):
        return error.reason


def status(state_dir: str | Path) -> Server | None:
    """The server that runs for this state folder, or None."""
    server = _read_state(Path(state_dir))
    return server if server and _process(server) else None


def stop(state_dir: str | Path, *, seconds: float = DRAIN_SECONDS + 10) -> bool:
    """Stops the server; True when one was running. Harmless when none is.

    The server gets `seconds` to finish the drafts that are under way; then it is killed. Only a process that
    is the tritonserver of server.json is ever touched, and the Python processes in its session.
    """
    state_dir = Path(state_dir)
    server = _read_state(state_dir)
    if server is None:
        return False
    process = _process(server)
    if process:
        process.terminate()
        try:
            process.wait(seconds)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(10)
    _clean_up(server.pid, server.grpc_port)
    (state_dir / STATE).unlink(missing_ok=True)
    return process is not None


def _command(binary: Path, repository: Path, ports: dict[str, int], key: str) -> list[str]:
    # Loading models is for who may read server.json; the other interfaces here are for nobody.
    locked = "model-repository,shared-memory,logging,trace"
    return [
        str(binary),
        f"--model-repository={repository}",
        f"--backend-directory={binary.parent.parent / 'backends'}",
        "--model-control-mode=explicit",
        f"--load-model={MODEL}",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={DRAIN_SECONDS}",
        f"--grpc-address={HOST}",
        f"--grpc-port={ports['grpc']}",
        f"--http-address={HOST}",
        f"--http-port={ports['http']}",
        f"--metrics-address={HOST}",
        f"--metrics-port={ports['metrics']}",
        f"--http-restricted-api={locked}:{KEY_HEADER}={key}",
        f"--grpc-restricted-protocol={locked}:{KEY_HEADER}={key}",
        # To load a model takes longer than the default of 30 s; `start` and `reload` have their own bounds.
        "--backend-config=python,stub-timeout-seconds=1200",
        f"--backend-config=python,shm-region-prefix-name={_shm_prefix(ports['grpc'])}",
    ]


def _shm_prefix(grpc_port: int) -> str:
    """Names the backend's shared memory: what a killed server leaves in /dev/shm can be told apart."""
    return f"mu2llm_{grpc_port}_"


def check_free(name: str, port: int) -> None:
    """`ServerError` when something listens on the port of this name: grpc, http or metrics."""
    with socket.socket() as probe:
        # As servers do: an old connection's remains don't count as in use, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ServerError(
                f"port {port} ({name}) is in use or not allowed ({error.strerror}): stop what uses it, "
                f"or choose another with --{name}-port"
            ) from None


def _checked_root(root: str) -> str:
    if "," in root:
        raise ValueError(f"volume root {root!r} holds a comma, which separates roots")
    if root.startswith("s3://"):
        return root
    if not Path(root).is_dir():
        raise FileNotFoundError(f"volume root {root} is not a folder")
    return str(Path(root).resolve())


def ready(server: Server) -> bool:
    """Whether its version answers now: not while it is starting or stopping."""
    url = f"http://{HOST}:{server.http_port}/v2/models/{MODEL}/versions/{server.version}/ready"
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def _wait_ready(process: subprocess.Popen, server: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(
                f"tritonserver ended with status {process.returncode} while starting: {server.log}"
            )
        if ready(server):
            return
        time.sleep(0.2)
    raise ServerError(f"tritonserver was not ready after {seconds:.0f} s: {server.log}")


def _process(server: Server) -> psutil.Process | None:
    """The server's process, when it lives and really is the one that was started."""
    try:
        process = psutil.Process(server.pid)
        same = abs(process.create_time() - server.created) < 1 and "tritonserver" in process.name()
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _clean_up(pid: int, grpc_port: int) -> None:
    """Ends Python processes that outlived their server, and frees the shared memory they held.

    They are told by their session, which is the dead server's pid; the kernel gives that number to nobody
    else while they live.
    """
    if _ended(pid):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                command = " ".join(process.cmdline())
                if os.getsid(process.pid) == pid and any(name in command for name in PYTHON_PROCESSES):
                    process.kill()
                    process.wait(10)
    for region in Path("/dev/shm").glob(f"{_shm_prefix(grpc_port)}*"):
        region.unlink(missing_ok=True)


def _ended(pid: int) -> bool:
    try:  # one that crashed stays a zombie until the process that started it asks
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _last_lines(log: Path) -> str:
    """The log's end without Triton's tables of settings, which would push the reason out."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if line and line[0] not in "|+"][-LOG_LINES:])


def _read_state(state_dir: Path) -> Server | None:
    try:
        return Server(**json.loads((state_dir / STATE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _write_state(state_dir: Path, server: Server) -> None:
    temporary = state_dir / f"{STATE}.part"
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(asdict(server), indent=2) + "\n", encoding="utf-8")
    temporary.replace(state_dir / STATE)

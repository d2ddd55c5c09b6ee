"""A Docker engine and the bases that images are built on where no registry can be reached.

`engine()` takes the engine that runs already, or starts dockerd, which needs root; its images stay in
build/containers, so that a second run builds nothing anew. The bases are made of Debian's packages: one
in place of the public python and pytorch images, one with the binary of `mu2llm.serving.triton_binary`
in place of NVIDIA's.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mu2llm import __version__

ROOT = Path(__file__).parents[2]
STORE = ROOT / "build" / "containers"
BASE, TRITON_BASE = "mu2llm-test/debian:12", "mu2llm-test/tritonserver:2.51"
IMAGES = {name: f"mu2llm/{name}:{__version__}" for name in ("base", "train", "triton")}
PACKAGES = "python3,python3-pip,python3-venv,libpython3.11,libstdc++6,ca-certificates"
CERTIFICATES = Path("/usr/local/share/ca-certificates")  # of a proxy that this machine trusts
START_SECONDS = 60
# How a pod of the manifests runs: what a container needs beyond this is named by its test.
LOCKED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--shm-size=1g",
)


class NoEngine(Exception):
    """This machine cannot build or run containers; the message says why."""


@dataclass(frozen=True)
class Engine:
    """A running engine: the client that can build on it, and its address."""

    client: str
    host: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1"}

    def docker(
        self, *words: str, check: bool = True, timeout: float | None = None
    ) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [self.client, *words], env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"docker {' '.join(words)}: {done.stderr.strip()[-2000:]}")
        return done

    def has(self, image: str) -> bool:
        return self.docker("image", "inspect", image, check=False).returncode == 0


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """The engine that runs, or one that is started and stopped again; raises `NoEngine`."""
    client = _client()
    given = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if _answers(client, given):
        yield Engine(client, given)
        return
    dockerd = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin")
    if dockerd is None:
        raise NoEngine("no Docker engine runs and dockerd is not installed (Debian: docker.io)")
    if os.geteuid() != 0:
        raise NoEngine("no Docker engine runs, and only root can start one")
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mu2-docker-") as state, (STORE / "dockerd.log").open("w") as log:
        host = f"unix://{state}/docker.sock"
        # fmt: off
        command = [
            dockerd, "--host", host, "--data-root", str(STORE / "docker"), "--exec-root", f"{state}/exec",
            "--pidfile", f"{state}/pid", "--bridge=none", "--iptables=false", "--ip-forward=false",
        ]
        # fmt: on
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_SECONDS
            while not _answers(client, host):
                if process.poll() is not None or time.monotonic() > end:
                    words = Path(log.name).read_text().strip().splitlines()[-1:]
                    raise NoEngine(f"dockerd does not start here: {' '.join(words)}")
                time.sleep(0.2)
            yield Engine(client, host)
        finally:
            process.terminate()
            process.wait()


def _client() -> str:
    """A docker client that can build with BuildKit: one with buildx, or one that needs none (Debian 12's)."""
    for client in filter(None, [shutil.which("docker"), shutil.which("docker", path="/usr/bin")]):
        version = subprocess.run([client, "--version"], capture_output=True, text=True).stdout
        major = int(version.partition("version ")[2].partition(".")[0] or 0)
        buildx = subprocess.run([client, "buildx", "version"], capture_output=True)
        if buildx.returncode == 0 or major < 23:
            return client
    raise NoEngine("no docker client that can build with BuildKit: install docker.io, or docker's buildx")


def _answers(client: str, host: str) -> bool:
    return subprocess.run([client, "--host", host, "version"], capture_output=True).returncode == 0


@contextlib.contextmanager
def private_network(docker: Engine) -> Iterator[str]:
    """The name of a network with no way out of it; raises `NoEngine`.

    The engine that is started here leaves the machine's firewall alone, which may drop what it does not know
    (another engine sets it so): it gets a rule for this network, for as long as the network is there.
    """
    name = f"mu2-{secrets.token_hex(4)}"
    bridge = f"--opt=com.docker.network.bridge.name={name}"
    made = docker.docker("network", "create", "--internal", bridge, name, check=False)
    if made.returncode != 0:
        raise NoEngine(f"the engine makes no network: {made.stderr.strip()}")
    iptables = shutil.which("iptables", path=f"{os.environ['PATH']}:/usr/sbin")
    rule = ["FORWARD", "-i", name, "-o", name, "-j", "ACCEPT"]
    with contextlib.ExitStack() as closing:
        closing.callback(docker.docker, "network", "rm", name)
        if iptables and os.geteuid() == 0:
            subprocess.run([iptables, "--wait", "--insert", *rule], check=True)
            closing.callback(subprocess.run, [iptables, "--wait", "--delete", *rule], check=True)
        yield name


def build_images(docker: Engine) -> None:
    """Builds the three images by `make images`, as a user does, on the stand-ins for their public bases."""
    make_base(docker)
    tried = docker.docker("run", "--rm", "--network=none", BASE, "true", check=False)
    if tried.returncode != 0:
        raise NoEngine(f"the engine runs no container here: {tried.stderr.strip()[-300:]}")
    make_triton_base(docker)
    bases = {"base_BASE": BASE, "train_BASE": BASE, "triton_BASE": TRITON_BASE}
    _collect_wheels()
    words = [f"{name}={value}" for name, value in bases.items()]
    command = ["make", "images", f"DOCKER={docker.client}", "BUILD_OPTIONS=--network=host", *words]
    done = subprocess.run(command, cwd=ROOT, env=docker.environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"make images: {(done.stdout + done.stderr)[-4000:]}")


def _collect_wheels() -> None:
    """torch's CPU wheel into wheels/, from where pip finds it here: an image has no GPU's libraries then."""
    wheels = ROOT / "wheels"
    wheels.mkdir(exist_ok=True)
    if any(wheels.glob("torch-*.whl")):
        return
    if "+cpu" not in version("torch"):
        raise NoEngine("pip finds only torch's CUDA build here: put the wheel of its CPU build into wheels/")
    download = ["pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), "torch==2.13.0"]
    subprocess.run([sys.executable, "-m", *download], check=True)


def make_base(docker: Engine) -> None:
    """Debian 12 with Python 3.11, and with the certificates that this machine trusts beyond Debian's own."""
    if docker.has(BASE):
        return
    debootstrap = shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin")
    if debootstrap is None or os.geteuid() != 0:
        raise NoEngine("the base is made by debootstrap (Debian: debootstrap), as root")
    with tempfile.TemporaryDirectory(dir=STORE) as work:
        root = Path(work) / "root"
        command = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            raise NoEngine(f"debootstrap: {made.stdout.strip()[-300:]}")
        for certificate in CERTIFICATES.glob("*.crt"):
            shutil.copy(certificate, root / CERTIFICATES.relative_to("/"))
        subprocess.run(["chroot", str(root), "update-ca-certificates"], check=True, stdout=subprocess.DEVNULL)
        for waste in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / waste, ignore_errors=True)
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            command = [docker.client, "import", "--change", "ENV LANG=C.UTF-8", "-", BASE]
            subprocess.run(command, env=docker.environment, stdin=tar.stdout, check=True, capture_output=True)


def make_triton_base(docker: Engine) -> None:
    """`BASE` with Triton 2.51 where NVIDIA's image has its own: /opt/tritonserver/bin is on PATH.

    Its Python stub looks for NumPy 1.26 where the server was started: the program on PATH goes there first.
    """
    from mu2llm.serving.triton_binary import fetch_tritonserver

    if docker.has(TRITON_BASE):
        return
    unpacked = fetch_tritonserver().parents[3]
    home = "/opt/tritonserver/wheel/pytriton/tritonserver"
    with tempfile.TemporaryDirectory(dir=STORE) as work:
        shutil.copytree(unpacked, Path(work) / "wheel")
        (Path(work) / "tritonserver").write_text(
            f"#!/bin/sh\ncd {home}/stub-packages && exec {home}/bin/tritonserver "
            f'--backend-directory={home}/backends "$@"\n'
        )
        (Path(work) / "tritonserver").chmod(0o755)
        (Path(work) / "Dockerfile").write_text(
            f"FROM {BASE}\nCOPY wheel /opt/tritonserver/wheel\n"
            f"COPY tritonserver /opt/tritonserver/bin/tritonserver\nENV MU2_TRITON_HOME={home}\n"
        )
        docker.docker("build", "--tag", TRITON_BASE, work)


def main() -> None:
    """Builds what the tests need: `python -m tests.containers.engine`."""
    with engine() as docker:
        begun = time.monotonic()
        build_images(docker)
        print(f"images built in {(time.monotonic() - begun) / 60:.1f} minutes")
        for name in IMAGES.values():
            size = docker.docker("image", "inspect", "--format", "{{.Size}}", name).stdout
            print(f"  {name}  {int(size) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

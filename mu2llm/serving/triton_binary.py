"""Finds the tritonserver binary, or fetches it: `python -m mu2llm.serving.triton_binary`.

The binary is the one inside the PyPI wheel nvidia-pytriton 0.7.0 (Triton 2.51, CPU). The wheel is unpacked
apart and never installed, because its pins contradict the project's own. Version 2.51 has known holes: it is
for loopback only. Production images bring their own tritonserver; there, MU2_TRITON_HOME names its folder.

The Python stub of 2.51 crashes with NumPy 2 (triton-inference-server/python_backend#384), so a NumPy 1.26 is
unpacked beside it, for the stub alone. The model runs in a process of its own, with the project's NumPy.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

WHEEL = "nvidia-pytriton==0.7.0"
# PyPI's wheels for x86_64 Linux (NumPy's for Python 3.11 and 3.12). pip refuses any other content.
REQUIREMENTS = f"""\
{WHEEL} --hash=sha256:21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df
numpy==1.26.4 \\
    --hash=sha256:666dbfb6ec68962c033a450943ded891bed2d54e6755e35e5835d63f4f6931d5 \\
    --hash=sha256:675d61ffbfa78604709862923189bad94014bef562cc35cf61d3a07bba02a7ed
"""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
STUB_PACKAGES = "stub-packages"
LIBPYTHON = f"libpython{PYTHON}.so.1.0"


def triton_home() -> Path:
    """The folder that holds `bin/tritonserver` and `backends/`, whether it is there yet or not.

    MU2_TRITON_HOME when set, else a folder in the virtual environment, else (no virtual environment) in the
    user's cache.
    """
    if given := os.environ.get("MU2_TRITON_HOME"):
        return Path(given)
    return _unpack_folder() / "pytriton" / "tritonserver"


def find_tritonserver() -> Path:
    """The `tritonserver` binary; `FileNotFoundError` with the remedy when it has not been fetched."""
    binary = triton_home() / "bin" / "tritonserver"
    if not binary.is_file():
        remedy = (
            "MU2_TRITON_HOME must name a folder with bin/tritonserver"
            if os.environ.get("MU2_TRITON_HOME")
            else "run `python -m mu2llm.serving.triton_binary` (make setup does)"
        )
        raise FileNotFoundError(f"no tritonserver at {binary}: {remedy}")
    return binary


def python_environment() -> dict[str, str]:
    """Environment that makes Triton's Python backend run this interpreter with this environment's packages.

    The stub embeds libpython and looks for its home the way `python3` would: by the first one on PATH. When
    the interpreter brings its own libpython (pyenv, uv, conda), the loader must see that one first.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    if folder := _libpython_folder():
        others = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{folder}{os.pathsep}{others}" if others else folder
    return environment


def working_folder() -> Path:
    """Where tritonserver must be started: the stub ignores PYTHONPATH and looks for NumPy here first."""
    packages = triton_home() / STUB_PACKAGES
    return packages if packages.is_dir() else triton_home()


def _libpython_folder() -> str:
    """Folder of the interpreter's own libpython, "" when the system's loader finds it by itself."""
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", triton_home() / "lib"):
        if folder and (Path(folder) / LIBPYTHON).is_file() and not str(folder).startswith("/usr/lib"):
            return str(folder)
    if not _system_has_libpython():
        raise FileNotFoundError(
            f"{LIBPYTHON} not found, Triton's Python backend needs it: apt-get install libpython{PYTHON}"
        )
    return ""


def _system_has_libpython() -> bool:
    try:
        ctypes.CDLL(LIBPYTHON)
    except OSError:
        return False
    return True


def _fetch_libpython(work: Path, folder: Path) -> None:
    """Debian's and Ubuntu's python3 comes without libpython; taking it out of its package needs no root."""
    package = f"libpython{PYTHON}"
    commands = (
        ["apt-get", "download", "--quiet", package],
        ["sh", "-c", f"dpkg-deb --extract {package}_*.deb unpacked"],
    )
    for command in commands:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        if done.returncode != 0:
            raise FileNotFoundError(
                f"{LIBPYTHON} not found, Triton's Python backend needs it: apt-get install {package}"
            )
    folder.mkdir()
    shutil.copy(next((work / "unpacked").rglob(LIBPYTHON)), folder / LIBPYTHON)


def _unpack_folder() -> Path:
    if sys.prefix != sys.base_prefix:
        base = Path(sys.prefix)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mu2llm"
    return base / "triton" / WHEEL.replace("==", "-")


def fetch_tritonserver() -> Path:
    """Downloads and unpacks the wheel unless that is done already; returns the binary.

    Works in a folder beside the target and renames it when whole, so an interrupted or a second, simultaneous
    call never leaves half a server.
    """
    if os.environ.get("MU2_TRITON_HOME"):
        return find_tritonserver()
    target = _unpack_folder()
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as work:
            whole = Path(work) / "whole"
            _download(Path(work))
            _unpack(Path(work), whole)
            if sys.base_prefix == "/usr" and not _system_has_libpython():
                _fetch_libpython(Path(work), whole / "pytriton" / "tritonserver" / "lib")
            try:
                whole.rename(target)
            except OSError:
                if not target.is_dir():  # a simultaneous call may have been first, with the same content
                    raise
    _libpython_folder()
    return find_tritonserver()


def _download(folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENTS, encoding="utf-8")
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--require-hashes", "--dest", str(folder), "--requirement", str(requirements),
    ]
    # fmt: on
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[0] if errors else done.stderr.strip()[-300:]
        raise RuntimeError(
            f"could not download {WHEEL} (x86_64 Linux, glibc 2.35 or newer): {reason}; "
            "or set MU2_TRITON_HOME to a folder with bin/tritonserver"
        )


def _unpack(wheels: Path, folder: Path) -> None:
    """Takes the server and its libraries out of the wheels, and puts this Python's stub in its place."""
    with zipfile.ZipFile(next(wheels.glob("nvidia_pytriton-*.whl"))) as archive:
        parts = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(parts)])
    home = folder / "pytriton" / "tritonserver"
    with zipfile.ZipFile(next(wheels.glob("numpy-*.whl"))) as archive:
        archive.extractall(home / STUB_PACKAGES)
    stub = home / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        raise RuntimeError(f"{WHEEL} has no Python backend for Python {PYTHON}: use Python 3.11 or 3.12")
    # The stub finds its bundled libraries relative to this very folder; elsewhere it does not start.
    placed = home / "backends" / "python" / stub.name
    shutil.copy(stub, placed)
    shutil.rmtree(home / "python_backend_stubs")
    for program in (placed, home / "bin" / "tritonserver"):
        program.chmod(0o755)


def main() -> int:
    try:
        print(f"tritonserver: {fetch_tritonserver()}")
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

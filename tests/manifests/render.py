"""Renders the overlays with a real kustomize: `python -m tests.manifests.render FOLDER`."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir() if path.is_dir())


def kustomize() -> list[str] | None:
    """The command that renders a folder, or None where there is no kustomize here."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return None


def render(overlay: str) -> str:
    """The overlay's objects as YAML; `CalledProcessError` with kustomize's words when it refuses."""
    command = kustomize()
    if command is None:
        raise FileNotFoundError("no kustomize: install kubectl 1.28 or newer, or kustomize 5")
    folder = str(MANIFESTS / "overlays" / overlay)
    return subprocess.run([*command, folder], check=True, capture_output=True, text=True).stdout


def objects(text: str) -> list[dict[str, Any]]:
    return [it for it in yaml.safe_load_all(text) if it]


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for overlay in OVERLAYS:
        text = render(overlay)
        (out / f"{overlay}.yaml").write_text(text, encoding="utf-8")
        print(f"{out / overlay}.yaml: {len(objects(text))} objects")


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"mu2: error: {getattr(error, 'stderr', '') or error}")

"""A CT from its file to the model's frames: ours beside the straightforward MONAI route, in one run.

    pip install -c constraints.txt 'mu2llm[bench]'   # monai
    python -m benchmarks.volume                      # 4 minutes, 2 GB of disk; MONAI on 600 takes 13.2 GiB
    python -m benchmarks.volume --monai-up-to 200    # 4.8 GiB: ours of 600 slices beside MONAI's of 200

MONAI's route loads the volume as float64, takes the percentiles of all of it, crops it to its foreground and
resizes it with anti-aliasing: what the published code does, and what mode "published" agrees with. Both sides
read the same .nii.gz; the frames are compared. Each call has a process of its own, with its packages loaded
before the clock starts; memory is that process's highest resident size, packages included.

Then an epoch over prepared frames (8 × 32 × 256 × 256), beside plain reads of the same files: cold, after the
kernel was told to drop them, and from its cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine, table

SIZE, DEPTH = 256, 256
SIDES = ("ours", "ours, hu", "monai")
FIGURES = (("seconds", "s", 1, "≤ 0.167"), ("cpu", "s of CPU", 1, ""), ("peak", "GiB", 2**30, "≤ 0.25"))


def write_ct(path: Path, slices: int) -> None:
    """512 × 512 × `slices` int16: lungs in a body in air, with a scanner's noise; deflates to half."""
    import nibabel
    from isal import igzip

    rng = np.random.default_rng(slices)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    tissue = np.full((512, 512), -1000, np.float32)
    tissue[(x / 0.8) ** 2 + (y / 0.6) ** 2 < 1] = 40
    tissue[((np.abs(x) - 0.35) / 0.25) ** 2 + (y / 0.4) ** 2 < 1] = -850
    array = np.empty((512, 512, slices), np.int16, order="F")
    for z in range(slices):
        noise = rng.standard_normal((512, 512), np.float32)
        array[:, :, z] = np.clip(tissue + noise * np.where(tissue > -1000, 20, 8), -1024, 3071).T
    image = nibabel.Nifti1Image(array, np.diag([-0.7, -0.7, 1.0, 1.0]))
    with igzip.open(path, "wb", compresslevel=1) as file:
        file.write(image.to_bytes())


def ours(path: str, mode: Any = "published") -> np.ndarray:
    from mu2llm.volume import prepare_frames

    return prepare_frames(path, mode=mode, size=SIZE, depth=DEPTH)


def monai(path: str) -> np.ndarray:
    """The published preprocessing, transform by transform."""
    from monai.transforms import CropForeground, EnsureChannelFirst, LoadImage, Resize, SpatialPad
    from monai.transforms import ScaleIntensityRangePercentiles as Scale

    image = EnsureChannelFirst()(LoadImage(image_only=True, dtype=np.float64)(path))
    image = Scale(lower=0.5, upper=99.5, b_min=0.0, b_max=1.0, clip=True)(image)
    image = CropForeground()(image)
    _, rows, columns, slices = image.shape
    ratio = min(SIZE / rows, SIZE / columns)
    shape = (int(rows * ratio), int(columns * ratio), min(slices, DEPTH))
    image = Resize(shape, mode="trilinear", align_corners=True, anti_aliasing=True)(image)
    image = SpatialPad((SIZE, SIZE, DEPTH), method="end")(image)
    return image[0].permute(2, 0, 1).clamp(0, 1).numpy().astype(np.float32).reshape(8, 32, SIZE, SIZE)


CALLS: dict[str, Callable[[str], np.ndarray]] = {
    "ours": ours,
    "ours, hu": lambda path: ours(path, "hu"),
    "monai": monai,
}


def child(side: str, path: str, small: str, frames: str) -> None:
    """One call in this process; prints its seconds and the process's peak."""
    CALLS[side](small)  # loads the packages
    loaded = _peak()
    began, cpu = time.perf_counter(), time.process_time()
    made = CALLS[side](path)
    spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    spent |= {"peak": _peak(), "loaded": loaded}
    if frames:
        np.save(frames, made)
    print(json.dumps(spent))


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def in_child(side: str, path: Path, small: Path, frames: str = "") -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.volume", "--child", side, str(path), str(small), frames]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr}")
    return json.loads(done.stdout)


def routes(folder: Path, runs: int, monai_up_to: int) -> list[tuple[str, ...]]:
    write_ct(small := folder / "small.nii.gz", 8)
    rows: list[tuple[str, ...]] = []
    other: dict[str, float] = {}
    beside = 0
    for slices in (200, 600):
        write_ct(path := folder / f"{slices}.nii.gz", slices)
        sides = SIDES if slices <= monai_up_to else SIDES[:2]
        spent: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for run in range(runs):
            for side in sides:
                spent[side].append(in_child(side, path, small, "" if run else str(folder / f"{side}.npy")))
        path.unlink()
        middle = {
            side: {what: statistics.median(one[what] for one in spent[side]) for what in spent[side][0]}
            for side in sides
        }
        if "monai" in middle:
            other, beside = middle["monai"], slices
            apart = np.abs(np.load(folder / "ours.npy") - np.load(folder / "monai.npy"))
            print(f"{slices} slices: frames {apart.max():.1e} apart at most, {apart.mean():.1e} on average")
        for side in SIDES[:2]:
            for what, unit, divisor, asked in FIGURES:
                mine, theirs = middle[side][what] / divisor, other[what] / divisor
                name = f"{slices} slices, {side} / MONAI{f' on {beside} slices' if beside < slices else ''}"
                rows.append(
                    (name, f"{mine:.3g} {unit}", f"{theirs:.3g} {unit}", f"{mine / theirs:.3f}", asked)
                )
                print(" | ".join(rows[-1]), flush=True)
    return rows


def epoch(folder: Path, volumes: int) -> list[tuple[str, ...]]:
    """Prepared frames read as training reads them, and their files read as fast as the disk gives them."""
    from mu2llm.data.frame_file import read_frames, write_frames

    frames = np.load(folder / "ours, hu.npy")
    paths = [folder / f"{i}.safetensors" for i in range(volumes)]
    for path in paths:
        write_frames(path, frames)
    size = paths[0].stat().st_size
    rows = []
    for place, cold in (("the disk", True), ("the kernel's cache", False)):
        rates = [[_rate(read, paths, cold) for read in (read_frames, _plain)] for _ in range(7)]
        a, b = (statistics.median(rate) for rate in zip(*rates, strict=True))
        speed = f"{b:.3g} volumes/s = {b * size / 2**30:.2f} GiB/s"
        rows.append(
            (f"epoch from {place}, ours / plain reads", f"{a:.3g} volumes/s", speed, f"{a / b:.2f}", "")
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


def _rate(read: Callable[[Path], object], paths: list[Path], cold: bool) -> float:
    """Files a second."""
    for path in paths:
        if cold:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            _plain(path)
    began = time.perf_counter()
    for path in paths:
        read(path)
    return len(paths) / (time.perf_counter() - began)


def _plain(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(8 << 20)
        while file.readinto(buffer):
            pass


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--runs", type=int, default=3, help="of each side, alternating; medians are given")
    parser.add_argument("--volumes", type=int, default=16, help="of the epoch")
    parser.add_argument("--monai-up-to", type=int, default=600, choices=(200, 600), help="slices")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = routes(Path(folder), args.runs, args.monai_up_to) + epoch(Path(folder), args.volumes)
    print("\n" + table(rows, ("figure", "ours", "other", "ratio", "asked for")))


if __name__ == "__main__":
    main()

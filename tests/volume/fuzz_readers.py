"""Mutates valid files of every format, reads them and makes frames, in a process with bounds:

    python -m tests.volume.fuzz_readers SEED COUNT

A case over 10 s ends the process (SIGALRM), one that needs more than 2 GB raises MemoryError, and every error
but VolumeError is a failure: the case's number and format stand in the last line, and the same seed gives the
same cases. Prints what came of them as JSON.
"""

import gzip
import io
import json
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from mu2llm.volume import VolumeError, load_volume_bytes, prepare_frames
from tests.dicom_series import jpeg2000, write_series

SECONDS, BYTES = 10, 2 << 30

Damage = Callable[[bytes], bytes]


def mutation(rng: np.random.Generator) -> Damage:
    """A function that damages bytes in one to six places, more often near their start, where headers are."""

    def damage(data: bytes) -> bytes:
        held = bytearray(data)
        for _ in range(rng.integers(1, 7)):
            if not held:
                break
            reach = len(held) if rng.random() < 0.4 else min(len(held), 600)
            at, length = int(rng.integers(reach)), int(rng.integers(1, 9))
            match rng.integers(7):
                case 0:
                    held[at] ^= 1 << int(rng.integers(8))
                case 1:
                    held[at : at + length] = rng.bytes(length)
                case 2:  # numbers at their ends: 0, −1, the largest, infinity and NaN of floats
                    ends = (bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\x80\x7f", b"\0\0\xc0\x7f")
                    held[at : at + 4] = ends[int(rng.integers(len(ends)))]
                case 3:
                    del held[at : at + length]
                case 4:
                    held[at:at] = rng.bytes(length)
                case 5:
                    held[at:at] = held[at : at + int(rng.integers(1, 200))]
                case 6:
                    del held[int(rng.integers(len(held))) :]
        return bytes(held)

    return damage


def zipped(files: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, data in enumerate(files):
            archive.writestr(str(i), data)
    return buffer.getvalue()


def series(syntax: str = "") -> list[bytes]:
    """The files of a small series, compressed by a transfer syntax."""

    def change(i: int, dataset: pydicom.FileDataset) -> pydicom.FileDataset:
        if syntax == DeflatedExplicitVRLittleEndian:
            dataset.file_meta.TransferSyntaxUID = syntax
        elif syntax == JPEG2000Lossless:
            return jpeg2000(dataset)
        elif syntax:
            dataset.compress(syntax)
        return dataset

    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), change, count=4)
        return [file.read_bytes() for file in sorted(Path(folder).iterdir())]


def deflate_again(data: bytes, damage: Damage) -> bytes:
    """A deflated slice whose dataset is damaged before it is deflated."""
    start = 144 + int.from_bytes(data[140:144], "little")  # behind the file meta group
    pack = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    inner = damage(zlib.decompress(data[start:], -zlib.MAX_WBITS))
    return data[:start] + pack.compress(inner) + pack.flush()


def formats() -> dict[str, Callable[[Damage], bytes]]:
    """For each format, a function from a damage to a damaged file."""
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    one, two = (kind(array, affine).to_bytes() for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image))
    scaled = nibabel.Nifti1Image(array.astype(np.float32) / 3, affine).to_bytes()
    buffer = io.BytesIO()
    np.save(buffer, rng.random((1, 4, 5, 6), np.float32))
    plain, packed, wavelets = series(), series(RLELossless), series(JPEG2000Lossless)
    deflated = series(DeflatedExplicitVRLittleEndian)
    return {
        "nifti": lambda damage: damage(one),
        "nifti2": lambda damage: damage(two),
        "float nifti": lambda damage: damage(scaled),
        "gzip of a damaged nifti": lambda damage: gzip.compress(damage(one), 1),
        "damaged gzip": lambda damage: damage(gzip.compress(one, 1)),
        "npy": lambda damage: damage(buffer.getvalue()),
        "zip of a damaged slice": lambda damage: zipped([damage(plain[0]), *plain[1:]]),
        "zip of a damaged RLE slice": lambda damage: zipped([damage(packed[0]), *packed[1:]]),
        "zip of a damaged JPEG 2000 slice": lambda damage: zipped([damage(wavelets[0]), *wavelets[1:]]),
        "zip of a damaged deflated slice": lambda damage: zipped([damage(deflated[0]), *deflated[1:]]),
        "zip of a slice deflated after its damage": lambda damage: zipped(
            [deflate_again(deflated[0], damage), *deflated[1:]]
        ),
        "damaged zip": lambda damage: damage(zipped(plain)),
    }


def check(data: bytes) -> bool:
    """Whether it is a volume after all; a VolumeError of one line says that it is none."""
    try:
        volume = load_volume_bytes(data, "x")
    except VolumeError as error:
        assert "\n" not in str(error), "an error of several lines"
        assert str(error).startswith("x"), "an error that does not name the file"
        return False
    assert volume.array.ndim == 3, volume.array.shape
    assert volume.array.dtype in (np.int16, np.float32), volume.array.dtype
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all()
    for mode in ("published", "hu"):
        try:
            frames = prepare_frames(volume, mode=mode, size=16, depth=16, frame_slices=16)
        except VolumeError as error:
            assert "\n" not in str(error), "an error of several lines"
        else:
            assert 0 <= frames.min() <= frames.max() <= 1
    return True


def main(seed: int, count: int) -> None:
    warnings.simplefilter("ignore")
    made = formats()
    for make in made.values():
        assert check(make(lambda data: data)), "the undamaged file is a volume"
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, held + BYTES))
    result = {name: {"volumes": 0, "refused": 0} for name in made}
    names = list(made)
    for case in range(count):
        name = names[case % len(names)]
        data = made[name](mutation(np.random.default_rng([seed, case])))
        print(f"case {case}: {name}", file=sys.stderr, flush=True)
        signal.alarm(SECONDS)
        try:
            result[name]["volumes" if check(data) else "refused"] += 1
        except BaseException:
            traceback.print_exc()
            sys.exit(f"failed: case {case} of seed {seed}, {name}")
        signal.alarm(0)
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

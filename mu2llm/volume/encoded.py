"""What a compressed DICOM file would unpack to, read from its own headers before a byte of it is unpacked.

A few kilobytes may claim gigabytes: a deflated dataset of zeros, or a JPEG 2000 stream larger than the Rows
and Columns beside it. A decoder makes room for what the stream says, so the stream is asked first.
"""

import zlib
from typing import Any, BinaryIO

MAX_INFLATED = 64 << 20  # bytes of one deflated slice; 2048 × 2048 pixels of 16 bits have 8 MiB
MAX_SIDE = 4096  # pixels; CTs have 512 to 2048
_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream, and of the segment with its size
_JP2 = b"\0\0\0\x0cjP  "
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG's markers with a size; F7 is JPEG-LS


def check_inflated(stream: BinaryIO) -> None:
    """Raises ValueError when a deflated dataset grows beyond `MAX_INFLATED`; leaves `stream` at its start.

    InvalidDicomError when it is no DICOM file.
    """
    from pydicom import filereader
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    filereader.read_preamble(stream, False)
    meta = filereader._read_file_meta_info(stream)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        filereader._read_command_set_elements(stream)
        inflate, grown = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while part := inflate.unconsumed_tail or stream.read(1 << 16):
            grown += len(inflate.decompress(part, 1 << 20))
            if grown > MAX_INFLATED:
                raise ValueError(f"it inflates to over {MAX_INFLATED >> 20} MiB, more than a slice has")
            if inflate.eof:
                break
    stream.seek(0)


def check_pixels(dataset: Any) -> None:
    """Raises ValueError when a slice's pixels are larger than its Rows and Columns, or these than a CT's."""
    from pydicom.encaps import get_frame

    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if max(rows, columns) > MAX_SIDE:
        raise ValueError(f"{rows} × {columns} pixels; a slice may have {MAX_SIDE} × {MAX_SIDE}")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated or "RLE" in syntax.name:  # RLE has no size of its own
        return
    held = stated_size(get_frame(dataset.PixelData, 0, number_of_frames=1))
    if held != (columns, rows, 1):
        told = "of no size" if held is None else "{} × {} pixels of {} colours".format(*held)
        raise ValueError(f"the compressed stream is {told}, its header says {columns} × {rows} of 1")


def stated_size(stream: bytes) -> tuple[int, int, int] | None:
    """(columns, rows, components) by the header of a JPEG, JPEG-LS or JPEG 2000 stream; None without one."""
    if stream.startswith(_JP2):
        stream = _codestream(stream)
    if stream.startswith(_SIZ):
        right, lower, left, upper = (_number(stream, at, 4) for at in (8, 12, 16, 20))
        return right - left, lower - upper, _number(stream, 40, 2)
    at = 2
    while stream.startswith(b"\xff\xd8") and at + 9 < len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker in _FRAMES:
            return _number(stream, at + 7, 2), _number(stream, at + 5, 2), stream[at + 9]
        at += 1 if marker == 0xFF else 2 + _number(stream, at + 2, 2)  # FF before a marker is filling
    return None


def _codestream(stream: bytes) -> bytes:
    """The JPEG 2000 codestream in the boxes of a JP2 file; b"" without one."""
    at = 0
    while at + 16 <= len(stream):
        length, kind = _number(stream, at, 4), stream[at + 4 : at + 8]
        header = 16 if length == 1 else 8
        if kind == b"jp2c":
            return stream[at + header :]
        length = _number(stream, at + 8, 8) if length == 1 else length
        if length < header:
            break
        at += length
    return b""


def _number(stream: bytes, at: int, count: int) -> int:
    return int.from_bytes(stream[at : at + count], "big")

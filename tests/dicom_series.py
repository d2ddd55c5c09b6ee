"""A writer of small DICOM series with any fault a test asks for."""

import io
from pathlib import Path

import numpy as np


def write_series(folder: Path, change=lambda i, dataset: dataset, count=8, step=2.5) -> np.ndarray:
    """Writes `count` slices of 16 × 20 pixels, shuffled names, and returns the HU array (X, Y, Z).

    `change(i, dataset)` may alter slice i (counted upwards), or return None to leave it out.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    stored = rng.integers(0, 2000, (count, 16, 20)).astype(np.uint16)
    names = rng.permutation(count)
    for i in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{i}"
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, f"1.2.3.{i}", "CT"
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.InstanceNumber = "1.2.3", "1.2.4", int(names[i])
        ds.PatientName, ds.PatientID = "Secret^Name", "SECRET-ID"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns, ds.PixelSpacing = 16, 20, [0.7, 0.8]
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-8.0, -6.0, 100 + step * i], [1, 0, 0, 0, 1, 0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        ds.PixelData = stored[i].tobytes()
        changed = change(i, ds)
        if changed is not None:
            changed.save_as(folder / f"IM{names[i]:04d}", enforce_file_format=True)
    return stored.transpose(2, 1, 0).astype(np.int16) - 1024


def jpeg2000(dataset):
    """A slice of `write_series`, compressed without loss; pydicom's own encoder takes no picture so small."""
    from PIL import Image
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless

    pixels = np.frombuffer(dataset.PixelData, np.uint16).reshape(dataset.Rows, dataset.Columns)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, irreversible=False, num_resolutions=1)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset.BitsStored, dataset.HighBit = 16, 15
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    return dataset

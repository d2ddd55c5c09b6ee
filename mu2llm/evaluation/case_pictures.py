"""Pictures of a study for the page: three planes through the place that moved its draft most."""

import base64
import io
import tempfile
from pathlib import Path

import numpy as np

from mu2llm.data.records import Study
from mu2llm.evaluation.drafts import LoadedModel
from mu2llm.evaluation.explain import trace

WIDTH, HEIGHT = 880, 400  # of the three planes together, in pixels at most


def pictures(loaded: LoadedModel, study: Study, max_new_tokens: int) -> dict[str, str]:
    """`plain` and `heat`, base64 JPEG: axial, coronal and sagittal, without and with the saliency in red.

    A study whose draft is empty has `plain` alone, through the middle of the volume.
    """
    from mu2llm import storage
    from mu2llm.volume import load_volume
    from mu2llm.volume.pictures import overlay_png

    with tempfile.TemporaryDirectory() as folder:
        scan = load_volume(Path(storage.fetch(study.volume, folder)))
        draft, saliency = trace(loaded, scan, max_new_tokens=max_new_tokens)
    shown = {"plain": 0.0, "heat": 1.0} if draft else {"plain": 0.0}
    if not draft:
        saliency = np.zeros(scan.array.shape, np.float32)
        saliency[tuple(n // 2 for n in scan.array.shape)] = 1
    window = (-160.0, 240.0) if scan.intensity == "hu" else (0.0, 1.0)
    return {
        name: _jpeg(overlay_png(scan, saliency, window=window, width=WIDTH, height=HEIGHT, opacity=opacity))
        for name, opacity in shown.items()
    }


def _jpeg(png: bytes) -> str:
    """A tenth of the size, and no difference at this size."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()

"""One volume's draft, and where in the volume it comes from, as files that a viewer opens."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mu2llm import NOTICE
from mu2llm.data.records import REPORT_QUESTION
from mu2llm.evaluation.drafts import LoadedModel, load

if TYPE_CHECKING:
    from mu2llm.volume import Volume


def explain(
    model: str | Path | LoadedModel,
    volume: str | Path,
    out: str | Path,
    *,
    question: str = REPORT_QUESTION,
    max_new_tokens: int = 512,
) -> str:
    """Drafts an answer, greedily, and writes into `out`: draft.txt, saliency.nii.gz, saliency.png.

    The NIfTI file has the volume's own grid, values from 0 to 1 (`mu2llm.model.explain`); the picture shows
    the three planes through the strongest place. Returns the draft.
    """
    import nibabel

    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder to write the explanation into")

    from mu2llm.volume import load_volume
    from mu2llm.volume.pictures import overlay_png

    loaded = model if isinstance(model, LoadedModel) else load(model)
    scan = load_volume(volume)
    draft, saliency = trace(loaded, scan, question=question, max_new_tokens=max_new_tokens)
    if not draft:
        raise ValueError(f"the model answers {volume} with an empty text: there is nothing to explain")
    out.mkdir(parents=True, exist_ok=True)
    (out / "draft.txt").write_text(f"{NOTICE}\n\n{draft}\n", encoding="utf-8")
    image = nibabel.Nifti1Image(saliency, scan.affine)
    image.header["descrip"] = NOTICE.encode()
    nibabel.save(image, out / "saliency.nii.gz")
    window = (-160.0, 240.0) if scan.intensity == "hu" else (0.0, 1.0)
    (out / "saliency.png").write_bytes(overlay_png(scan, saliency, window=window))
    return draft


def trace(
    loaded: LoadedModel, scan: "Volume", *, question: str = REPORT_QUESTION, max_new_tokens: int = 512
) -> tuple[str, np.ndarray]:
    """The draft of a volume, greedy, and how much each voxel moved it: (X, Y, Z) on the volume's own grid,
    from 0 to 1; all 0 where the draft is empty."""
    import torch

    from mu2llm.model.explain import as_written
    from mu2llm.volume import to_volume

    processor = loaded.processor
    inputs = processor([processor.frames(scan)], [question]).to(loaded.model.device)
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    tokens = ids[0, inputs["input_ids"].shape[1] :].tolist()
    draft = processor.decode(tokens)
    if not draft:
        return "", np.zeros(scan.array.shape, np.float32)
    strength = loaded.model.explain(**as_written(inputs, tokens))[0].float().cpu().numpy()
    carried = to_volume(strength, scan, **processor.preparation)
    return draft, carried / max(carried.max(), np.finfo(carried.dtype).tiny)  # averaging lowered the peak

"""The logged model: MLflow runs this file when `mlflow.pyfunc.load_model` loads a version."""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ReportModel(PythonModel):
    """Drafts reports. One row in, one draft out: research drafts, unverified, not for clinical decisions."""

    def load_context(self, context: Any) -> None:
        from mu2llm.evaluation.drafts import load

        self.loaded = load(context.artifacts["model"])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """The drafts of a table of volumes and, if wanted, questions.

        Columns: `volume`, a path or s3:// address, or in its place `content`, the bytes of a NIfTI file or of
        a zipped DICOM series; `question`, of which a missing or empty one asks for the report. `params`:
        `max_tokens`. Greedy decoding. ValueError naming the row (from 0) that has no volume, or both.
        """
        max_tokens = (params or {}).get("max_tokens", 256)
        return [
            self._draft(_volume(number, row), _given(row, "question") or "", max_tokens)
            for number, row in enumerate(model_input.to_dict("records"))
        ]

    def _draft(self, volume: str | bytes, question: str, max_tokens: int) -> str:
        import tempfile

        import torch

        from mu2llm import storage
        from mu2llm.data.records import REPORT_QUESTION
        from mu2llm.volume import load_volume_bytes

        model, processor = self.loaded.model, self.loaded.processor
        if isinstance(volume, bytes):
            frames = processor.frames(load_volume_bytes(volume, "content"))
        else:
            with tempfile.TemporaryDirectory() as folder:
                frames = processor.frames(storage.fetch(volume, folder))
        batch = processor([frames], [question or REPORT_QUESTION])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=max_tokens, do_sample=False)
        return processor.decode(ids[0, batch["input_ids"].shape[1] :])


def _given(row: dict[Any, Any], column: str) -> Any:
    """The cell, or None: pandas has NaN where a row lacks what another has."""
    value = row.get(column)
    return value if isinstance(value, str | bytes) else None


def _volume(number: int, row: dict[Any, Any]) -> str | bytes:
    sent = [value for column in ("volume", "content") if (value := _given(row, column))]
    if len(sent) != 1:
        raise ValueError(
            f"row {number} has {len(sent)} volumes: give either volume, a path, or content, bytes"
        )
    return sent[0]


set_model(ReportModel())

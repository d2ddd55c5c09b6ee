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
        """The drafts of a table with a column `volume` (path or s3:// address) and, if wanted, `question`.

        A missing or empty question asks for the report. `params`: `max_tokens`. Greedy decoding.
        """
        max_tokens = (params or {}).get("max_tokens", 256)
        known = "question" in model_input
        questions = model_input["question"].fillna("") if known else [""] * len(model_input)
        return [
            self._draft(volume, question, max_tokens)
            for volume, question in zip(model_input["volume"], questions, strict=True)
        ]

    def _draft(self, volume: str, question: str, max_tokens: int) -> str:
        import tempfile

        import torch

        from mu2llm import storage
        from mu2llm.data.records import REPORT_QUESTION

        model, processor = self.loaded.model, self.loaded.processor
        with tempfile.TemporaryDirectory() as folder:
            frames = processor.frames(storage.fetch(volume, folder))
        batch = processor([frames], [question or REPORT_QUESTION])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=max_tokens, do_sample=False)
        return processor.decode(ids[0, batch["input_ids"].shape[1] :])


set_model(ReportModel())

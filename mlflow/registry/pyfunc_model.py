"""The logged model: MLflow runs this file when `mlflow.pyfunc.load_model` loads a version."""

import warnings
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

# `predict` has no type hint for its input: MLflow would take it for a schema, which the logged signature is.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method", category=UserWarning)


class ReportModel(PythonModel):
    """Drafts reports. One row in, one draft out: research drafts, unverified, not for clinical decisions."""

    def load_context(self, context: Any) -> None:
        from mu2llm.evaluation.drafts import load

        self.loaded = load(context.artifacts["model"])

    def predict(self, context, model_input, params=None) -> list[str]:  # type: ignore[no-untyped-def]
        """The drafts of a table with a column `volume` (path or s3:// address) and, if wanted, `question`.

        A missing or empty question asks for the report. `params`: `max_tokens`. Greedy decoding.
        """
        import pandas as pd

        max_tokens = (params or {}).get("max_tokens", 256)
        table = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        questions = table["question"].fillna("") if "question" in table else [""] * len(table)
        return [
            self._draft(volume, question, max_tokens)
            for volume, question in zip(table["volume"], questions, strict=True)
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

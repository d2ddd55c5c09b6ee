"""μ²LLM: configuration, model and processor, registered with transformers' Auto classes on import."""

from mu2llm.model.configuration import Mu2Config, Mu2VisionConfig
from mu2llm.model.modeling import Mu2ForConditionalGeneration
from mu2llm.model.processing import Mu2Processor

__all__ = ["Mu2Config", "Mu2ForConditionalGeneration", "Mu2Processor", "Mu2VisionConfig"]

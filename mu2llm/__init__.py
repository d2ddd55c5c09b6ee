"""μ²LLM: draft radiology reports from 3D CT volumes.

Drafts are for research, unverified, and not for clinical decisions.

After `import mu2llm`, transformers' Auto classes know the model, its configuration and its processor.
"""

from mu2llm import _auto

__version__ = "0.1.0"

NOTICE = "Research draft, unverified: not for clinical decisions."

_auto.register_with_transformers()

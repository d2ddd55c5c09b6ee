"""μ²LLM: draft radiology reports from 3D CT volumes.

Drafts are for research, unverified, and not for clinical decisions.
"""

__version__ = "0.1.0"

NOTICE = "Research draft, unverified: not for clinical decisions."

"""The images that the steps run in: built by `images/`, named by version, never `latest`.

The names carry no registry host: a cluster's kustomize overlay or its container runtime says where they lie.
"""

from mu2llm import __version__

BASE = f"mu2llm/base:{__version__}"
TRAIN = f"mu2llm/train:{__version__}"

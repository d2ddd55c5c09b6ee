"""`mu2 register`, `mu2 registry` and `mu2 export`: versions, gates, promotion, roll back, Triton repository."""

import argparse
from typing import Any

TRACKING = "sqlite:///demo/mlflow/mlflow.db"


def add(commands: Any) -> None:
    """Adds the verbs to the parser's commands."""
    register = commands.add_parser("register", help="log a model with its evaluation and make it a version")
    register.add_argument("model", help="model folder")
    register.add_argument("evaluation", help="evaluation.json of this model")
    _shared(register)
    register.set_defaults(run=run_register)

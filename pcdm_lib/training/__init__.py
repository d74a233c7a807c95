"""The training loop, optimisers, several processes."""

from pcdm_lib.training.state import TrainingDiverged
from pcdm_lib.training.trainer import Trainer

__all__ = [
    "Trainer",
    "TrainingDiverged",
]

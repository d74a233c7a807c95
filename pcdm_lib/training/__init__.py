"""The training loop, optimisers, several processes."""

from pcdm_lib.training.trainer import Trainer, TrainingDiverged

__all__ = [
    "Trainer",
    "TrainingDiverged",
]

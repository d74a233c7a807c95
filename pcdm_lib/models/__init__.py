"""The cascade (Eq. 15), its networks and their preconditioning, configurations, presets,
checkpoints, trained models."""

from pcdm_lib.models.cascade import Bound, Cascade, Samples, bits_per_dim, evaluation_mode
from pcdm_lib.models.checkpoints import load_cascade
from pcdm_lib.models.config import Config, ModelConfig, TrainingConfig
from pcdm_lib.models.preconditioning import PreconditionedDenoiser
from pcdm_lib.models.presets import build, preset
from pcdm_lib.models.pretrained import load_pretrained
from pcdm_lib.models.scale import Scale
from pcdm_lib.models.unet import UNet

__all__ = [
    "Bound",
    "Cascade",
    "Config",
    "ModelConfig",
    "PreconditionedDenoiser",
    "Samples",
    "Scale",
    "TrainingConfig",
    "UNet",
    "bits_per_dim",
    "build",
    "evaluation_mode",
    "load_cascade",
    "load_pretrained",
    "preset",
]

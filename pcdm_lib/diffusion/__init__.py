"""One scale as a diffusion model (Sect. 3, 5.1): noise schedules, the three terms of its bound, a
reverse step."""

from pcdm_lib.diffusion.schedule import (
    FittedSchedule,
    LinearSchedule,
    MonotoneSchedule,
    Schedule,
    alpha_sigma,
    make_schedule,
    stratified_times,
)
from pcdm_lib.diffusion.terms import (
    Denoiser,
    Terms,
    add_noise,
    diffusion_term,
    gamma_for_spacing,
    per_coefficient,
    per_image,
    prior_term,
    reconstruction_term,
    reverse_step,
    step_term,
)
from pcdm_lib.diffusion.weighting import EdmLoss

__all__ = [
    "Denoiser",
    "EdmLoss",
    "FittedSchedule",
    "LinearSchedule",
    "MonotoneSchedule",
    "Schedule",
    "Terms",
    "add_noise",
    "alpha_sigma",
    "diffusion_term",
    "gamma_for_spacing",
    "make_schedule",
    "per_coefficient",
    "per_image",
    "prior_term",
    "reconstruction_term",
    "reverse_step",
    "step_term",
    "stratified_times",
]

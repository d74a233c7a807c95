"""Likelihood training of cascaded diffusion models via hierarchical volume-preserving maps.

A reproduction of arXiv 2501.06999. These are the names that most work needs; the rest is in the
packages, which follow the paper:

    maps          Sect. 4       hierarchical maps, on floats and exactly on integers
    diffusion     Sect. 3, 5.1  noise schedules, the three terms of one scale's bound
    models        Eq. 15        the cascade, its networks, configurations, trained models
    likelihood    Eq. 6, Sect. 6  bits per dimension, the probability flow, typicality
    transport     Sect. 5.2     earth mover's distances and the bound on them
    coding        Sect. 6.3     lossless compression
    training, data, experiments, figures, commands

Example:
    >>> import torch
    >>> import pcdm_lib as pcdm
    >>> photos = pcdm.load_data("photos")
    >>> model = pcdm.load_pretrained("photos32-wavelet")
    >>> print(pcdm.evaluate(model, photos.heldout[:64]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pcdm_lib.coding import Archive, compress
    from pcdm_lib.data import load_data
    from pcdm_lib.diffusion import FittedSchedule, LinearSchedule, MonotoneSchedule
    from pcdm_lib.likelihood import Evaluation, evaluate, kraft_sum
    from pcdm_lib.likelihood.three_ways import compare_likelihoods
    from pcdm_lib.maps import HaarWavelet, Identity, LaplacianPyramid, Scales, Subsampling
    from pcdm_lib.models import Bound, Cascade, Scale, build, load_pretrained, preset
    from pcdm_lib.training import Trainer
    from pcdm_lib.transport import exact_emd, score_errors, transport_bound, wavelet_emd

# The module that each name is taken from, when it is first asked for: importing this package loads
# neither PyTorch nor what only some users have installed.
_HOMES = {
    "HaarWavelet": "maps",
    "LaplacianPyramid": "maps",
    "Subsampling": "maps",
    "Identity": "maps",
    "Scales": "maps",
    "LinearSchedule": "diffusion",
    "FittedSchedule": "diffusion",
    "MonotoneSchedule": "diffusion",
    "Scale": "models",
    "Cascade": "models",
    "Bound": "models",
    "preset": "models",
    "build": "models",
    "load_pretrained": "models",
    "load_data": "data",
    "Trainer": "training",
    "evaluate": "likelihood",
    "Evaluation": "likelihood",
    "kraft_sum": "likelihood",
    "compare_likelihoods": "likelihood.three_ways",
    "exact_emd": "transport",
    "wavelet_emd": "transport",
    "score_errors": "transport",
    "transport_bound": "transport",
    "compress": "coding",
    "Archive": "coding",
}

__all__ = [
    "Archive",
    "Bound",
    "Cascade",
    "Evaluation",
    "FittedSchedule",
    "HaarWavelet",
    "Identity",
    "LaplacianPyramid",
    "LinearSchedule",
    "MonotoneSchedule",
    "Scale",
    "Scales",
    "Subsampling",
    "Trainer",
    "build",
    "compare_likelihoods",
    "compress",
    "evaluate",
    "exact_emd",
    "kraft_sum",
    "load_data",
    "load_pretrained",
    "preset",
    "score_errors",
    "transport_bound",
    "wavelet_emd",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Bits per dimension with their errors, the probability flow (Eq. 6), enumerable sources,
typicality (Sect. 6)."""

from pcdm_lib.likelihood.enumerable import (
    EnumeratedSource,
    all_images,
    code_lengths,
    exact_cascade,
    example_source,
    kraft_sum,
)
from pcdm_lib.likelihood.evaluation import Evaluation, evaluate, paired_difference
from pcdm_lib.likelihood.information import InformationMap, information_map

__all__ = [
    "EnumeratedSource",
    "Evaluation",
    "InformationMap",
    "all_images",
    "code_lengths",
    "example_source",
    "evaluate",
    "exact_cascade",
    "information_map",
    "kraft_sum",
    "paired_difference",
]

"""Bits per dimension with their errors, the probability flow (Eq. 6), enumerable sources,
typicality (Sect. 6)."""

from pcdm_lib.likelihood.enumerable import (
    EnumeratedSource,
    all_images,
    code_lengths,
    contract_source,
    exact_cascade,
    kraft_sum,
)
from pcdm_lib.likelihood.evaluation import Evaluation, evaluate, paired_difference
from pcdm_lib.likelihood.information import InformationMap, information_map

__all__ = [
    "Evaluation",
    "evaluate",
    "paired_difference",
    "EnumeratedSource",
    "all_images",
    "contract_source",
    "exact_cascade",
    "code_lengths",
    "kraft_sum",
    "InformationMap",
    "information_map",
]

"""Hierarchical volume-preserving maps (Sect. 4 of the paper), on floats and exactly on integers."""

from pcdm_lib.maps.hierarchical import HierarchicalMap
from pcdm_lib.maps.laplacian import LaplacianPyramid
from pcdm_lib.maps.scales import Scales, ScaleSpec
from pcdm_lib.maps.standard import MAPS, Identity, Subsampling, make_map
from pcdm_lib.maps.wavelet import HaarWavelet

__all__ = [
    "MAPS",
    "HaarWavelet",
    "HierarchicalMap",
    "Identity",
    "LaplacianPyramid",
    "ScaleSpec",
    "Scales",
    "Subsampling",
    "make_map",
]

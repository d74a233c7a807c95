"""Likelihood training of cascaded diffusion models via hierarchical volume-preserving maps (arXiv
2501.06999)."""

__version__ = "0.1.0"

from pcdm_lib.models.pretrained import load_pretrained

__all__ = ["load_pretrained"]

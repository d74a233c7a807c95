"""Lossless compression (Sect. 6.3): bits back, tiles, chunks, the `.pcdm` file, and the encoders to
compare with."""

from pcdm_lib.coding.archive import Archive, compress
from pcdm_lib.coding.chunks import Settings

__all__ = [
    "Archive",
    "Settings",
    "compress",
]

"""Images and where they come from."""

from pcdm_lib.data.images import ImageData
from pcdm_lib.data.sets import constant_images, load_data, read_square, uniform_images

__all__ = [
    "load_data",
    "ImageData",
    "uniform_images",
    "constant_images",
    "read_square",
]

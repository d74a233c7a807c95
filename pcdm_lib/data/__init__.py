"""Images and where they come from."""

from pcdm_lib.data.images import ImageData
from pcdm_lib.data.sets import constant_images, load_data, read_square, uniform_images

__all__ = [
    "ImageData",
    "constant_images",
    "load_data",
    "read_square",
    "uniform_images",
]

"""Image files that a user names: the name that each gets in an archive, their sizes, and PNG files
to write."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pcdm_lib import records
from pcdm_lib.data.found import find_images
from pcdm_lib.data.images import SUFFIXES, beyond_rgb, check_input


def name_files(paths: Iterable[Path]) -> dict[str, Path]:
    """Image files by name: a file's own name, and for those of a folder the path inside it.

    Args:
        paths: files, and folders that hold some.
    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: where two files would have the same name, or a folder holds no images.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        check_input(path)
        inner = (
            [(file, path / file) for file in find_images(path).files]
            if path.is_dir()
            else [(path.name, path)]
        )
        if not inner:
            raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
        for name, file in inner:
            if name in found:
                raise ValueError(
                    f"{found[name]} and {file} would both be called {name!r} in the file: rename "
                    f"one, or use two files"
                )
            found[name] = file
    return found


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file, from its header.

    Raises:
        ValueError: where it cannot be read, or holds more than 8-bit grey or RGB. So this is known
            before hours of work.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            what = beyond_rgb(image, file)
            size = image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as PNG, JPEG or WebP ({error}): repair or remove it"
        ) from error
    if what:
        raise ValueError(
            f"{path} has {what}, expected one 8-bit RGB, grey or palette image: convert or remove "
            f"it"
        )
    return size


def write_png(path: Path | str, pixels: np.ndarray, description: str | None = None) -> None:
    """Write a PNG file that is whole or absent.

    Args:
        pixels: uint8 (H, W), (H, W, 1) or (H, W, 3).
        description: goes into the file as its text "Description".
    """
    text = PngInfo()
    if description is not None:
        text.add_text("Description", description)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).save(
        buffer, "PNG", pnginfo=text
    )
    records.write_bytes(path, buffer.getvalue())

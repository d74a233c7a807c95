"""Image files that a user names: the name that each gets in an archive, their sizes, and PNG files
to write."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from pcdm_lib import records
from pcdm_lib.data.found import find_images
from pcdm_lib.data.images import (
    ORIENTATION,
    SUFFIXES,
    TURNED,
    UNREADABLE,
    beyond_rgb,
    check_input,
    opened_image,
    pixels_of,
)

MAX_SAMPLES = 1 << 30  # of an image, 357 megapixels in colour: it lies whole in memory
_MAX_TEXT = 1 << 26  # bytes of a PNG's text and profiles, which are not kept


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
    """Height and width of an image file, from its header. Errors as of `read_image`."""
    with _opened(path) as image:
        return image.height, image.width


def is_turned(path: Path) -> bool:
    """Whether an image file's EXIF orientation asks for another position than that of its pixels,
    from its header. Errors as of `read_image`."""
    with _opened(path) as image:
        return image.getexif().get(ORIENTATION, 1) in TURNED


def read_image(path: Path) -> np.ndarray:
    """One 8-bit image file as its decoder gives it, grey as (H, W), else RGB (H, W, 3): every
    sample of up to `MAX_SAMPLES`, and no metadata.

    Raises:
        ValueError: where it cannot be read, is cut short, or holds more than 8-bit grey or RGB.
    """
    with _opened(path) as image:
        mode = "L" if image.mode in ("1", "L") else "RGB"
        return pixels_of(image, lambda band: band.convert(mode))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose header says that files can hold it. Pillow's limits are set aside: they
    are for images that strangers send, and these are the user's own."""
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_TEXT
    try:
        with path.open("rb") as file, opened_image(file) as image:
            what = beyond_rgb(image, file)
            if what:
                raise ValueError(
                    f"it has {what}, expected one 8-bit RGB, grey or palette image: convert or "
                    f"remove it"
                )
            samples = image.width * image.height * (1 if image.mode in ("1", "L") else 3)
            if samples > MAX_SAMPLES:
                raise ValueError(
                    f"it has {samples} samples, at most {MAX_SAMPLES} are read at once: cut it "
                    f"into parts"
                )
            yield image
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read: {_reason(error)}") from error
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before[:2]
        PngImagePlugin.MAX_TEXT_MEMORY = before[2]


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no PNG, JPEG or WebP file; convert or remove it"
    if isinstance(error, MemoryError):
        return "it does not fit into memory; cut it into parts"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    ours = text.startswith("it has")
    return text if ours else f"it is damaged or cut short ({text}); repair or remove it"


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

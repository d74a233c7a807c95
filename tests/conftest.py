"""Settings and data for all tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# The tests' tensors are tiny: a second thread gains nothing, and on a busy machine waiting for it
# costs minutes.
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small photographs' worth of smooth colour noise, as a folder of PNG files. Not to be
    changed: copy it."""
    path = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(6):
        field = generator.normal(size=(64, 64, 3)).cumsum(0).cumsum(1)
        Image.fromarray(
            (255 * (field - field.min()) / (field.max() - field.min())).astype(np.uint8)
        ).save(path / f"{i}.png")
    return path

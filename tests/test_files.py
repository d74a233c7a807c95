"""Image files that a user names, where the images of an archive may go, and what a model has
seen."""

import numpy as np
import pytest
from PIL import Image

from pcdm_lib.coding.extract import targets
from pcdm_lib.data import load_data
from pcdm_lib.data.files import image_size, name_files, write_png
from pcdm_lib.data.seen import check_unseen


@pytest.mark.parametrize("shape, mode", [((5, 7), "L"), ((5, 7, 1), "L"), ((5, 7, 3), "RGB")])
def test_png_files_keep_pixels_and_text(tmp_path, shape, mode):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "new" / "a.png", pixels, "what it shows")
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == mode and image.text["Description"] == "what it shows"
        assert np.array_equal(np.asarray(image).reshape(shape), pixels)
    assert image_size(tmp_path / "new" / "a.png") == shape[:2]


def test_files_get_their_own_names_and_folders_inner_paths(tmp_path):
    for name in ("a.png", "f/b.png", "f/g/c.png"):
        write_png(tmp_path / name, np.zeros((2, 2), np.uint8))
    (tmp_path / "f" / "notes.txt").touch()
    found = name_files([tmp_path / "a.png", tmp_path / "f"])
    assert list(found) == ["a.png", "b.png", "g/c.png"]
    assert found["g/c.png"] == tmp_path / "f" / "g" / "c.png"
    with pytest.raises(ValueError, match=r"would both be called 'b\.png'"):
        name_files([tmp_path / "f" / "b.png", tmp_path / "f"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        name_files([tmp_path / "z.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        name_files([tmp_path / "empty"])


def test_sixteen_bits_are_refused_before_any_work(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="16 bits a channel"):
        image_size(tmp_path / "deep.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="cannot be read"):
        image_size(tmp_path / "torn.png")


def test_targets_lie_in_the_folder(tmp_path):
    assert targets(["a.png", "b.jpg", "c/d.PNG"], tmp_path) == {
        "a.png": tmp_path / "a.png",
        "b.jpg": tmp_path / "b.jpg.png",
        "c/d.PNG": tmp_path / "c" / "d.PNG",
    }


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a/../../b.png", "a\\b.png", "out/a"])
def test_targets_that_lead_out_are_refused(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        targets(["fine.png", name], folder)


def test_targets_replace_nothing_unasked(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png is there already \(1 such files\)"):
        targets(["a.png", "b.png"], tmp_path)
    assert targets(["a.png"], tmp_path, replace=True) == {"a.png": tmp_path / "a.png"}
    with pytest.raises(ValueError, match="the same PNG file"):
        targets(["b.png", "B.png"], tmp_path)


def test_what_a_model_has_seen(folder):
    images = load_data(f"folder:{folder}")
    shape, trained_on = (3, 32, 32), {"folder": images.source["folder"], "label": "folder images"}
    same = trained_on | {"train_sha256": images.source["train_sha256"]}
    assert check_unseen(same, shape, images) is None
    changed = trained_on | {"train_sha256": "another"}
    with pytest.raises(ValueError, match="has changed since training"):
        check_unseen(changed, shape, images)
    # of another folder, or at another size, nothing can be said
    assert check_unseen(changed | {"folder": "elsewhere"}, shape, images) is None
    assert check_unseen(changed, (3, 64, 64), images) is None
    slide = load_data("histology", heldout_limit=1)
    assert "has seen the slide" in check_unseen({"label": "photos32: ..."}, shape, slide)
    assert check_unseen({"label": "cifar10"}, shape, slide) is None

"""Image files that a user names, where the images of an archive may go, and what a model has
seen."""

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pcdm_lib.coding import extract
from pcdm_lib.coding.extract import targets
from pcdm_lib.data import files, load_data
from pcdm_lib.data.files import image_size, name_files, read_image, write_png
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


def test_long_texts_and_large_images_of_the_user_are_read(tmp_path, monkeypatch):
    text = PngInfo()
    text.add_text("workflow", "v" * 2_000_000, zip=True)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=text)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow warns beyond, and refuses twice
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(files, "MAX_SAMPLES", 3 * 269)
    with pytest.raises(ValueError, match="it has 810 samples.*cut it into parts"):
        image_size(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_images_are_read_as_grey_or_colour(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.png")
    expected = image.convert("RGB" if mode in ("P", "RGB") else "L")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(expected))


def test_targets_lie_in_the_folder(tmp_path):
    names = ["a.png", "b.jpg", "c/d.PNG", "album\\e.png", "f" * 247 + ".jpg", "ü" * 125 + ".png"]
    found = targets(names, tmp_path)
    assert not found.impossible and not found.renamed
    assert found.paths == {
        "a.png": tmp_path / "a.png",
        "b.jpg": tmp_path / "b.jpg.png",
        "c/d.PNG": tmp_path / "c" / "d.PNG",
        "album\\e.png": tmp_path / "album\\e.png",
        names[4]: tmp_path / (names[4] + ".png"),
        names[5]: tmp_path / names[5],
    }
    write_png(found.paths[names[4]], np.zeros((2, 2), np.uint8))  # 255 bytes: all that there are


OUT = ["../a.png", "/etc/a.png", "a/../../b.png", "..\\b.png", "out/a"]


@pytest.mark.parametrize(
    "name, reason",
    [
        *((name, "leads out") for name in OUT),
        ("g" * 252 + ".png", "takes 256 bytes and 255 are possible"),
        ("g" * 248 + ".jpg", "takes 256 bytes, with .png added"),
        ("/".join(["h" * 200] * 22) + "/a.png", "its path takes"),
        ("fine", "it would become fine.png, as 'fine.png' does"),
        ("file/a.png", "is there and no folder"),
        ("folder", "a folder of that name is there"),
        ("\ud800.png", "characters that no file name has"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_one_impossible_name_does_not_hold_up_the_others(tmp_path, name, reason, first):
    folder = tmp_path / "in"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "file").touch()
    (folder / "out").symlink_to(tmp_path)
    names = [name, "fine.png"] if first else ["fine.png", name]
    found = targets(names, folder)
    assert reason in found.impossible[name] and list(found.paths) == ["fine.png"]
    found = targets(names, folder, rename=True)
    assert found.renamed == {name: folder / f"image-0000{names.index(name) + 1}.png"}
    assert found.paths == {"fine.png": folder / "fine.png"} | found.renamed
    assert not found.impossible


def test_a_file_beside_a_folder_of_its_name(tmp_path):
    names = ["a.jpg", "a.jpg.png/b.png", "a.jpg.png/c.png"]
    found = targets(names, tmp_path)
    assert list(found.paths) == names[1:]
    assert found.impossible == {"a.jpg": "others need a folder called a.jpg.png"}
    assert list(targets(names, tmp_path, chosen=["a.jpg"]).paths) == ["a.jpg"]


def test_where_no_name_is_possible_that_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no image can be written: '/a' .*--rename"):
        targets(["b.png", "/a"], tmp_path, chosen=["/a"])


def test_names_that_differ_in_case_or_normal_form_alone(tmp_path, monkeypatch):
    """Both are written where the file system keeps them apart, which is tried, not assumed."""
    names = ["A.png", "a.png", "\u00fc.png", "u\u0308.png"]
    assert list(targets(names, tmp_path).paths) == names  # as here
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr("pcdm_lib.outputs.folds_case", lambda folder: True)
    found = targets(names, tmp_path)
    assert list(found.paths) == names[::2] and list(found.impossible) == names[1::2]
    found = targets(names, tmp_path, rename=True)
    assert [path.name for path in found.renamed.values()] == ["image-00002.png", "image-00004.png"]


def test_numbers_for_names_avoid_names_that_are_taken(tmp_path):
    found = targets(["image-00002.png", "/a", "image-00002-2.png"], tmp_path, rename=True)
    assert found.renamed == {"/a": tmp_path / "image-00002-3.png"}


def test_targets_replace_nothing_unasked(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png is there already \(1 such files\)"):
        targets(["a.png", "b.png"], tmp_path)
    assert targets(["a.png"], tmp_path, replace=True).paths == {"a.png": tmp_path / "a.png"}


def test_names_that_decompress_cannot_write_are_warned_of():
    assert extract.warnings(["a.png", "b/c.jpg", "d" * 250 + ".png"]) == []
    (line,) = extract.warnings(["x.jpg", "x.jpg.png", "y" * 250 + ".jpg", "/z", "w/../../q"])
    assert "'x.jpg' (it would become x.jpg.png" in line and " and 1 more" in line
    assert "--rename" in line and "\n" not in line
    (line,) = extract.warnings(["A.png", "a.png", "album\\b.png", "c\n.png"])
    assert "on some systems" in line and "backslash" in line and "\n" not in line


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

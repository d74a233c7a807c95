"""Files of a direct cascade: what they take, that they come back on any machine, what damage costs,
and what their beginnings show."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pcdm_lib as pcdm
from pcdm_lib.coding import archive
from pcdm_lib.coding.chunks import Settings
from pcdm_lib.coding.container import DamagedFile
from pcdm_lib.coding.direct import DirectCodec
from pcdm_lib.coding.plain import encode_image
from pcdm_lib.commands.app import main
from pcdm_lib.models.direct import sides_of
from pcdm_lib.models.unfolding import draw, unfold

MODEL = Settings(plain=False)  # these models know nothing, and plain files would be shorter


def cascade(colours=3, seed=0, side=32):
    """One that has moved away from its start."""
    made = pcdm.build(pcdm.preset("tiny", "direct", (colours, side, side)).model, seed)
    generator = torch.Generator().manual_seed(seed)
    for p in made.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5
    return made.eval()


@pytest.fixture(scope="module")
def model():
    return cascade()


def smooth(*shape, seed=0):
    """An image (H, W[, 3]) that a model codes and no plain codec takes for nothing."""
    rng = np.random.default_rng(seed)
    field = rng.normal(0, 40, shape)
    for axis in (0, 1):
        field = np.cumsum(field, axis) / 3
    return np.clip(field + rng.normal(0, 3, shape) + 128, 0, 255).astype(np.uint8)


def planes(image):
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def bits(model, image):
    """-log2 P of an image (H, W, 3) of any sides."""
    x = torch.from_numpy(planes(image).astype(np.int32))[None]
    with torch.no_grad():
        return float(model.network(x, dtype=torch.float64).sum()) / np.log(2)


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (64, 64)])
def test_a_file_takes_what_the_likelihood_says(model, shape):
    """Images drawn from the model: within 64 bits and a thousandth, with nothing to start from."""
    generator = torch.Generator().manual_seed(0)
    most = 255 * 4 ** (len(sides_of(*shape)) - 1)
    base = torch.randint(most + 1, (1, 3, 1, 1), generator=generator)
    image = [*unfold(model.network, base, *shape, draw(generator))][-1][1][0].numpy()
    assert 0 <= image.min() and image.max() <= 255
    image = image.astype(np.uint8)
    payload = DirectCodec(model, MODEL).encode([image])
    ideal = bits(model, image.transpose(1, 2, 0))
    assert -8 < 8 * len(payload) - ideal < 64 + 0.001 * ideal + 8 * 5  # 5 bytes of numbers


def test_a_single_image_has_forty_bytes_around_it(model, tmp_path):
    image, out = smooth(80, 90, 3), tmp_path / "a.pcdm"
    found = archive.compress([("a.png", image)], out, model, "tiny", MODEL)
    assert out.stat().st_size * 8 == found.total_bits
    payload = DirectCodec(model, MODEL).encode([planes(image)])
    assert out.stat().st_size - len(payload) < 40
    with archive.Archive(out) as opened:
        assert opened.names() == ["a.png"] and opened.single
        opened.prepare(model)
        ((_, back),) = opened.images()
    assert np.array_equal(back, image)
    # the name of the file is that of the image; another name is stored
    moved = tmp_path / "b.pcdm"
    moved.write_bytes(out.read_bytes())
    with archive.Archive(moved) as opened:
        assert opened.names() == ["b.png"]
    archive.compress([("long name.jpg", image)], out, model, "tiny", MODEL)
    with archive.Archive(out) as opened:
        assert opened.names() == ["long name.jpg"]


@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (3,)]), st.integers(0, 99)
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([1, 3]),
    st.booleans(),
)
def test_round_trip(shapes, colours, plain):
    codec = DirectCodec(cascade(colours), Settings(plain=plain))
    images = [
        planes(smooth(h, w, *rest, seed=seed) if seed % 3 else extremes(h, w, *rest))
        for h, w, rest, seed in shapes
    ]
    payload = codec.encode(images)
    back = codec.decode([image.shape for image in images], payload)
    assert all(np.array_equal(a, b) for a, b in zip(images, back, strict=True))


@pytest.mark.parametrize("shape", [(1030, 3), (1, 4100), (2, 2049, 3)])
def test_images_with_more_levels_than_a_map_has(shape):
    """Sums of the coarse levels leave 32 bits behind."""
    codec = DirectCodec(cascade(shape[2] if shape[2:] else 1), Settings(plain=False))
    for image in (planes(smooth(*shape)), planes(np.full(shape, 255, np.uint8))):
        assert np.array_equal(codec.decode([image.shape], codec.encode([image]))[0], image)


def extremes(*shape):
    return np.random.default_rng(0).choice([0, 255], shape).astype(np.uint8)


def test_how_it_is_computed_changes_nothing(model):
    """Threads, and the images beside one: the words are the same."""
    images = [planes(smooth(12, 15, 3, seed=k)) for k in range(3)]
    codec, threads = DirectCodec(model, MODEL), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(codec.encode(images))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert np.array_equal(codec.decode([images[0].shape], codec.encode(images[:1]))[0], images[0])


def test_files_of_today_can_be_read_for_ever(model):
    """Pinned: another value is another format."""
    payload = DirectCodec(model, MODEL).encode([planes(smooth(20, 30, 3))])
    assert hashlib.sha256(payload).hexdigest() == GOLDEN


GOLDEN = "44e5f10f31980bea88611cbe64f44bd8dd2cc1424c2c14fcef76347e17c65eae"


@pytest.mark.parametrize("pieces", [False, True])
def test_the_beginning_of_a_file_is_a_small_picture(model, tmp_path, pieces):
    image, out = smooth(150, 200, 3), tmp_path / "a.pcdm"
    piece = 3 * 64 * 128 if pieces else 1 << 22
    archive.compress([("a.png", image)], out, model, "tiny", Settings(piece=piece, plain=False))
    data, small = out.read_bytes(), {}
    with archive.Archive(out) as opened:
        opened.prepare(model)
        for level in (1, 2):
            ((name, small[level]),) = opened.previews(level)
            high, wide = sides_of(150, 200)[level]
            assert name == "a.png" and small[level].shape == (high, wide, 3)
        with pytest.raises(ValueError, match="1/2 to 1/16"):
            [*opened.previews(9)]
    means = image[:148, :].reshape(37, 4, 50, 4, 3).mean(axis=(1, 3))
    assert np.abs(small[2][:37] - means).max() <= 0.5
    if pieces:
        return
    cut = tmp_path / "cut.pcdm"
    cut.write_bytes(data[: len(data) // 3])
    with archive.Archive(cut) as opened:
        opened.prepare(model)
        ((_, found),) = opened.previews(2)
        assert np.array_equal(found, small[2])
        (damage,) = opened.previews(1)
        assert isinstance(damage, DamagedFile) and "ask for a smaller one" in str(damage)
        (damage,) = opened.images()
        assert isinstance(damage, DamagedFile) and "cut short" in str(damage)


def test_a_cut_archive_shows_the_picture_it_ends_in(model, tmp_path):
    images = [("a", smooth(90, 80, 3)), ("b", smooth(150, 200, 3, seed=1))]
    out = tmp_path / "two.pcdm"
    archive.compress(images, out, model, "tiny", Settings(chunk_tiles=1, plain=False))
    data = out.read_bytes()
    out.write_bytes(data[: -len(data) // 3])
    with archive.Archive(out) as opened:
        opened.prepare(model)
        assert opened.names() == ["a"] and opened.names(cut=True) == ["a", "b"]
        assert [name for name, _ in opened.previews(2)] == ["a", "b"]
        assert [name for name, _ in opened.images()] == ["a"]


def test_damage_is_said_and_no_pixel_is_wrong(model, tmp_path):
    image = smooth(20, 30, 3)
    out, bad = tmp_path / "a.pcdm", tmp_path / "bad.pcdm"
    archive.compress([("a.png", image)], out, model, "tiny", MODEL)
    data, rng = out.read_bytes(), np.random.default_rng(0)
    for _ in range(12):
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        bad.write_bytes(changed)
        try:
            with archive.Archive(bad) as opened:
                opened.prepare(model)
                (found,) = opened.images()
        except (ValueError, OSError):
            continue
        # the last bits of the last word may be of no consequence
        assert isinstance(found, DamagedFile) or np.array_equal(found[1], image)


def test_another_model_is_refused(model, tmp_path):
    out, other = tmp_path / "a.pcdm", cascade(seed=1)
    for images in ([("a", smooth(9, 9, 3))], [("a", smooth(60, 60, 3)), ("b", smooth(60, 60))]):
        archive.compress(images, out, model, "tiny", MODEL)
        with archive.Archive(out) as opened, pytest.raises(archive.WrongModel, match="digest"):
            opened.prepare(other)


def test_noise_costs_no_more_than_a_plain_file(model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = archive.compress([("n", noise)], tmp_path / "n.pcdm", model, "tiny")
    assert found.plain_images == 1 and found.total_bits < 8.3 * noise.size


def test_a_drawing_is_no_larger_than_its_png(model, tmp_path):
    drawing = np.full((200, 300, 3), 255, np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(300):  # strokes
        row, column = rng.integers(0, 190), rng.integers(0, 270)
        drawing[row : row + 2, column : column + 25] = rng.integers(0, 256, 3)
    found = archive.compress([("d", drawing)], tmp_path / "d.pcdm", model, "tiny")
    assert (
        found.plain_images == 1 and found.total_bits < 8 * len(encode_image("PNG", drawing)) + 2000
    )


def test_from_training_to_small_pictures_in_the_shell(tmp_path, capsys, monkeypatch):
    """What the README promises, one command after the other."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(3):
        Image.fromarray(smooth(48, 64, 3, seed=k)).save(photos / f"{k}.png")
    run = ["--system", "direct", "--preset", "tiny", "--dataset", f"folder:{photos}"]
    assert main(["train", "r", *run, "--size", "16", "--steps", "3", "--quiet"]) == 0
    assert main(["evaluate", "r", "--dataset", f"folder:{photos}", "--size", "16"]) == 0
    assert "the likelihood itself" in capsys.readouterr().out
    assert main(["sample", "r", "-o", "s", "--count", "2", "--quiet"]) == 0
    assert len([*(tmp_path / "s").glob("*-details1.png")]) == 2
    big = tmp_path / "big.png"
    Image.fromarray(smooth(130, 140, 3)).save(big)
    three = {name: photos / name for name in ("0.png", "1.png", "2.png")}
    for sources in ({"big.png": big}, three):
        inputs, model = map(str, sources.values()), ["--model", "r", "--force", "--quiet"]
        assert main(["compress", *inputs, "-o", "x.pcdm", *model]) == 0
        assert main(["decompress", "x.pcdm", "-o", "all", *model]) == 0
        assert main(["decompress", "x.pcdm", "-o", "small", "--scale", "1/4", *model]) == 0
        for name, source in sources.items():
            with Image.open(source) as a, Image.open(tmp_path / "all" / name) as b:
                assert np.array_equal(np.asarray(a), np.asarray(b))
            with Image.open(source) as a, Image.open(tmp_path / "small" / name) as b:
                assert b.size == tuple(-(-side // 4) for side in a.size)

"""Files of images: the same to the bit, small, safe against damage, and the same on other machines."""

import io
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pcdm_lib import archive, container, data, load_pretrained, presets
from pcdm_lib.__main__ import main
from pcdm_lib.archive import Archive, Settings, WrongModel, compress
from pcdm_lib.container import DamagedFile, UnknownVersion


def small_cascade(map_name: str = "wavelet", levels: int = 1, channels: int = 3, seed: int = 0):
    """A tiny cascade whose weights are plain numbers, not draws of a generator that another version might change."""
    config = presets.ModelConfig(map=map_name, levels=levels, image_shape=(channels, 16, 16), channels=(8, 8), blocks=1, attention=True, gamma_max=(5.0,))
    cascade = presets.build(config)
    with torch.no_grad():
        for number, (name, p) in enumerate(sorted(cascade.named_parameters())):
            k = torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape) + 17 * number + seed
            p.copy_((torch.remainder(k * 0.6180339887, 1.0) - 0.5) * 0.3)
    return cascade.eval()


CASCADE = small_cascade()
FAST = Settings(steps=3, batch=4, chunk_tiles=6)
MODEL_ONLY = Settings(steps=3, batch=4, chunk_tiles=6, plain=False)


def photographs(count: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    found = data.load("photos").heldout
    return [(f"photo-{i:03d}.png", found[(seed + 7 * i) % len(found)].permute(1, 2, 0).numpy()[:16, :16]) for i in range(count)]


def assert_round_trip(tmp_path, images, settings=FAST, cascade=CASCADE, **prepare) -> archive.Books:
    path = tmp_path / "a.pcdm"
    books = compress(images, path, cascade, "tiny", settings)
    with Archive(path) as file:
        file.prepare(cascade, **prepare)
        found = list(file.images())
    assert [name for name, _ in found] == [name for name, _ in images]
    for (name, given_), (_, back) in zip(images, found):
        assert back.dtype == np.uint8 and np.array_equal(given_, back), name
    assert abs(books.total_bits - 8 * path.stat().st_size) < 1e-6 * books.total_bits  # every byte is in the books
    return books


def odd_images() -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    board = (np.indices((17, 18)).sum(0) % 2 * 255).astype(np.uint8)
    one = np.full((16, 16, 3), 128, np.uint8)
    one[5, 6, 1] = 129
    return [("noise", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), ("constant", np.full((20, 16, 3), 7, np.uint8)), ("checkerboard", board),
            ("one pixel changed", one), ("1x1", np.full((1, 1, 3), 250, np.uint8)), ("1x1 grey", np.zeros((1, 1), np.uint8)),
            ("row", rng.integers(0, 256, (1, 33, 3), dtype=np.uint8)), ("column", rng.integers(0, 256, (35, 1), dtype=np.uint8)),
            ("grey", rng.integers(100, 110, (19, 23), dtype=np.uint8)), ("ünïcode/name", np.full((3, 2, 3), 1, np.uint8))]


@pytest.mark.parametrize("settings_", [FAST, MODEL_ONLY], ids=["as it is", "by the model alone"])
@pytest.mark.parametrize("system", [("wavelet", 1, 3), ("wavelet", 2, 3), ("laplacian", 1, 3), ("identity", 0, 3), ("wavelet", 1, 1)], ids=str)
def test_round_trip_of_odd_images(tmp_path, system, settings_):
    assert_round_trip(tmp_path, odd_images() + photographs(4), settings_, small_cascade(*system), network_batch=3)


@pytest.mark.parametrize("settings_", [FAST, MODEL_ONLY], ids=["as it is", "by the model alone"])
def test_round_trip_of_a_large_image(tmp_path, settings_):
    rng = np.random.default_rng(1)
    smooth = np.clip(np.cumsum(rng.normal(0, 2, (200, 300, 3)), axis=1) + 128, 0, 255).astype(np.uint8)
    assert_round_trip(tmp_path, [("large", smooth)], settings_)


@given(hnp.arrays(np.uint8, st.one_of(hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
                                      hnp.array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda s: (*s, 3)))), st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_any_array(tmp_path, image, plain):
    assert_round_trip(tmp_path, [("x", image)], FAST if plain else MODEL_ONLY)


def test_images_that_a_model_expands_are_stored_by_a_plain_codec(tmp_path):
    rng = np.random.default_rng(0)
    images = [(f"noise{i}", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for i in range(8)] + [("flat", np.zeros((64, 64, 3), np.uint8))]
    books = assert_round_trip(tmp_path, images)
    assert books.plain_images == 9
    png = 0
    for _, image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
        png += len(buffer.getvalue())
    assert (tmp_path / "a.pcdm").stat().st_size < png + 400


def test_a_trained_model_beats_its_plain_start_and_pays_the_bound(tmp_path):
    """The shipped wavelet cascade on its held-out photographs, some of them plain, all of them back."""
    found = data.load("photos").heldout[::20][:6]
    images = [(f"{i}.png", image.permute(1, 2, 0).numpy()) for i, image in enumerate(found)]
    books = assert_round_trip(tmp_path, images, Settings(steps=30, plain=False), load_pretrained("photos32-wavelet"))
    assert books.model_images == 6 and 3.0 < books.net_bpd < 8.0
    assert abs(sum(row.sum() for row in books.steps.values()) / books.model_bits - 1) < 0.005  # the books add up to the stack
    assert abs(sum(books.image_bits.values()) / books.model_bits - 1) < 0.005 and [*books.image_bits] == [*range(6)]
    assert set(books.steps) == {"base", "details1"} and all(len(row) == 32 for row in books.steps.values())


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize("image,message", [
    (np.zeros((4, 4), np.float32), "uint8"), (np.zeros((4, 4), np.uint16), "uint8"), (np.zeros((4, 4, 4), np.uint8), "grey image"),
    (np.zeros((0, 4), np.uint8), "grey image"), (np.zeros(4, np.uint8), "grey image"), ([[1]], "uint8")])
def test_what_is_no_image_is_refused_and_nothing_written(tmp_path, image, message):
    with pytest.raises(ValueError, match=message):
        compress([("good", np.zeros((4, 4), np.uint8)), ("bad", image)], tmp_path / "a.pcdm", CASCADE, "tiny", FAST)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"steps": 1}, {"fineness": 0.0}, {"batch": 0}, {"chunk_tiles": 0}, {"side": 0}, {"precision": "bf16"}])
def test_settings_that_no_file_has(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Settings(**change)


def test_models_that_files_cannot_have(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        compress(photographs(1), tmp_path / "a.pcdm", small_cascade("standard"), "tiny", FAST)
    with pytest.raises(ValueError, match="8-bit"):
        compress(photographs(1), tmp_path / "a.pcdm", presets.build(presets.ModelConfig(image_shape=(1, 4, 4), max_value=3, channels=(8,), blocks=1)), "t", FAST)
    with pytest.raises(ValueError, match="two images"):
        compress(photographs(1) * 2, tmp_path / "a.pcdm", CASCADE, "tiny", FAST)
    with pytest.raises(ValueError, match="no image"):
        compress([], tmp_path / "a.pcdm", CASCADE, "tiny", FAST)
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- whose file it is


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A file of three chunks of photographs and odd images, coded by the model."""
    path = tmp_path_factory.mktemp("sample") / "s.pcdm"
    images = photographs(14) + odd_images()[:3]
    compress(images, path, CASCADE, "tiny", MODEL_ONLY)
    return path, dict(images)


def test_another_model_is_refused(sample):
    with Archive(sample[0]) as file:
        for other in (small_cascade(seed=1), small_cascade("laplacian"), small_cascade("identity", 0)):
            with pytest.raises(WrongModel, match="the very model that wrote it"):
                file.prepare(other)


def test_a_weight_that_differs_in_its_last_bit_is_another_model():
    other = small_cascade()
    with torch.no_grad():
        p = next(other.parameters())
        p.view(-1)[0] = torch.nextafter(p.view(-1)[0], torch.tensor(9.0))
    assert archive.digest(other) != archive.digest(CASCADE) == archive.digest(small_cascade())


def rewritten(path, target, **changes):
    """The file with other values in its header, all checksums made anew."""
    with container.Reader(path) as reader:
        with container.Writer(target, reader.header | changes) as writer:
            for info in reader.chunks:
                writer.add_chunk(*reader.chunk(info.number))
    return target


def test_other_versions_machines_and_tables_are_refused(sample, tmp_path):
    for changes, message in (({"coding": 99}, "version 99"), ({"tables": 1}, "other tables"), ({"precision": "float32", "machine": "abacus"}, "abacus")):
        with Archive(rewritten(sample[0], tmp_path / "b.pcdm", **changes)) as file:
            with pytest.raises(WrongModel, match=message):
                file.prepare(CASCADE)
    for changes in ({"steps": "many"}, {"fineness": -1}, {"batch": 0}):
        with pytest.raises(DamagedFile, match="how the file was written"):
            Archive(rewritten(sample[0], tmp_path / "b.pcdm", **changes))
    raw = bytearray(sample[0].read_bytes())
    length = int.from_bytes(raw[10:14], "little")
    raw[8] = 7
    raw[14:18] = zlib.crc32(raw[18:18 + length], zlib.crc32(raw[:14])).to_bytes(4, "little")
    (tmp_path / "c.pcdm").write_bytes(raw)
    with pytest.raises(UnknownVersion, match="7"):
        Archive(tmp_path / "c.pcdm")


def test_a_float32_file_decodes_here(tmp_path):
    path = tmp_path / "a.pcdm"
    images = photographs(5)
    compress(images, path, CASCADE, "tiny", Settings(steps=3, batch=2, precision="float32", plain=False))
    with Archive(path) as file:
        with pytest.raises(ValueError, match="network_batch"):
            file.prepare(CASCADE, network_batch=5)
        file.prepare(CASCADE)
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(images, file.images()))


# ---------------------------------------------------------------- the same on other machines


SCRIPT = """
import sys, numpy as np, torch
sys.path.insert(0, {tests!r})
from test_archive import small_cascade
from pcdm_lib.archive import Archive
torch.set_num_threads(int(sys.argv[2]))
with Archive(sys.argv[1]) as file:
    file.prepare(small_cascade(), network_batch=int(sys.argv[3]))
    found = dict(file.images())
np.savez(sys.argv[4], **found)
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("threads,batch,environment", [
    (1, 1, {}), (2, 7, {}), (2, 3, {"ATEN_CPU_CAPABILITY": "default"}), (1, 4, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
    (2, 4, {"ONEDNN_MAX_CPU_ISA": "AVX", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"})])
def test_a_fresh_process_with_other_threads_batches_and_instructions_decodes(sample, tmp_path, threads, batch, environment):
    path, images = sample
    script = SCRIPT.format(tests=os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", script, str(path), str(threads), str(batch), str(tmp_path / "o.npz")], capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment)
    assert done.returncode == 0, done.stderr
    if environment.get("ATEN_CPU_CAPABILITY") == "default":
        assert "DEFAULT" in done.stdout  # the lower instruction set was in use
    with np.load(tmp_path / "o.npz") as found:
        assert {*found.files} == {*images}
        assert all(np.array_equal(found[name], image) for name, image in images.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_decodes_what_a_cpu_encoded(sample):
    with Archive(sample[0]) as file:
        file.prepare(CASCADE, device="cuda")
        assert all(np.array_equal(sample[1][name], image) for name, image in file.images())


GOLDEN = """
8f5043444d0d0a1a01007e000000540a18a00d8d410ec3200c04ffe233aa400127f01b073ba9a514a2c2a5aafaf7fa38d2ecec175e9de5820253db071cb09e32a6f112365cc9e7ca1ba623
550a9169f51c77cf35139a5b3b6b3ba1040763ca3da02c0e0e6dd26418f84772b0d3ac4f28d1146531171ddc6fa93ab437bb39ae4e13a3d526ed97d82c84b464cc1ed3ef0f8e43484b2900
0000330400000000000008e4a857433fe1310000032b4acc2d60482f4aad64c8cf4b656064666665640462664646004b3f53895d283a020a837d0d0000002dd11540dda68a58665a6bd69c
880060807d0043802700380079001e0008007800040026808000580034004700b400180048000d000000748001000080010000000000000000000000000000000000000000000000000000
000000000000000000000000ffffffff71c2a85bffffffc700000094dc41ff01ffffffffffffffff000000ffffffffff000000ff000000ff000000ffff67dda8113ff8bb2d03000d802200
1400400027803e000d803b0030003a000c803500048088010a00000000800000000000000000000000000000000000000000000000e9f6420bffffff4bfaffff22fbffff00f8ffff000000
0000684efa3300000000ffffffc14a4156d0ffffff32000000ff0400004b897d5094a3ae9ba86cd2c5233233f1eb657176aa6185000b80180025003a002400c2003680760012000a001000
500022000000008100000000000000000100000000000000000000000000000000000000000000ffffffff000000ff000000ff000000ff000000ff000000ffffffffff000000ffe96cc28a
679f6e0f283d00633e01000e000d00280009000b808b010800010000000100000000000000000000faffff00faffff00830000dbffffffb6ffffff0096bf5d4ac75da29cb3d3fd82dd4d00
79aaa500110012003a80880017004f000600160008003500030048001c00460005001a0050003600450000006a000000520000000080010000000000000000000000000000000000000000
00000000000000000000000000000000000000000000ffffff00ffffffffffffffffffffffff00000000ffffff0000000000ffffffff000000ffffffffff000000ffffffffffffffffff00
0000ff9d5efdecee09c1215d01007622b50014805300000060001f002d0008002e005800380013000c00430036000c003901ed800000000000000000000000000000000000000000000000
0000000000000000000000005ea07328ffffffff000000b71f4ceeed000000ff000000ff000000ffaeffff37000000a2ffffff00f6d30cd900000059676a5504efe357660d0200c3ed647f
e89a5adf03e4fdff4e926c01184e44a9c8e106002c8d010045009e002200220015803d00450022002000450029800100008000000080000000800100008001000000000000000000000000
000000000053ffffffb8fbffff77fdffffff000000ffffffffff11ee85ca514cbfcdd227006e0d570158809a006280860044006e015100fd007200d5003d80d1007a800000960001000000
010000000100000000000000000000000000000001000000000000fffffffeffffffffffffffffffffffffffffffffffffff7fffffffffffffffff1812be11ab08c65cccf7d976ebffffbf
cdffff6547d670d6fdfffff8ab6dfc75eefcff9c6c71fa8f9ba589142054efa41c0a0097c41c024480010000169d4edc422301b736da02a7000000009efa393c813d0204fbffff0c4031b0
03faffffc30c00000001f4080304000000c51396f78e454e44
"""


def golden_images() -> list[tuple[str, np.ndarray]]:
    ramp = np.arange(3 * 5 * 3).reshape(3, 5, 3)
    return [("ramp", (ramp // 3).astype(np.uint8)), ("grey", (ramp[..., 0] * 7 % 256).astype(np.uint8)), ("one", np.full((1, 1, 3), 200, np.uint8))]


def test_golden_file(tmp_path):
    """Freezes the format and the arithmetic: this file was written once, on an AMD EPYC, and has to decode everywhere and for good."""
    path = tmp_path / "golden.pcdm"
    path.write_bytes(bytes.fromhex(GOLDEN))
    with Archive(path) as file:
        file.prepare(CASCADE)
        found = list(file.images())
    for (name, image), (found_name, back) in zip(golden_images(), found, strict=True):
        assert name == found_name and np.array_equal(image, back)
    compress(golden_images(), tmp_path / "again.pcdm", CASCADE, "tiny", MODEL_ONLY)
    with Archive(path) as a, Archive(tmp_path / "again.pcdm") as b:
        assert a.reader.header == b.reader.header
        assert [a.reader.chunk(i.number) for i in a.reader.chunks] == [b.reader.chunk(i.number) for i in b.reader.chunks]


# ---------------------------------------------------------------- damage


def test_every_byte_of_the_header_and_two_thousand_of_the_rest(sample, tmp_path):
    """A flipped byte is an error or a notice that names what it concerns; whatever is decoded all the same is what was written."""
    path, images = sample
    raw = path.read_bytes()
    with container.Reader(path) as reader:
        start, chunks = reader.chunks[0].offset, reader.chunks
        whole = {info.number: reader.chunk(info.number) for info in chunks}
    rng = np.random.default_rng(0)
    work = tmp_path / "d.pcdm"
    for place in [*range(start), *rng.integers(start, len(raw), 2000).tolist()]:
        work.write_bytes(raw[:place] + bytes([raw[place] ^ int(rng.integers(1, 256))]) + raw[place + 1:])
        if place < start:
            with pytest.raises((DamagedFile, UnknownVersion), match="d.pcdm"):
                Archive(work)
            continue
        hit = next((info.number for info in chunks if info.offset <= place < info.offset + info.length), None)
        with Archive(work) as file:
            assert hit is not None or file.reader.damage
            for info in chunks:
                if info.number != hit:
                    assert file.reader.chunk(info.number) == whole[info.number]
                    continue
                with pytest.raises(DamagedFile) as error:
                    file.reader.chunk(info.number)
                first, last = info.first_image + 1, info.first_image + info.images
                assert "'photo-" in str(error.value) or f"{first} to {last}" in str(error.value) or f"image {first}" in str(error.value)


def test_undamaged_chunks_of_a_damaged_file_are_decoded(sample, tmp_path):
    path, images = sample
    raw = bytearray(path.read_bytes())
    with container.Reader(path) as reader:
        info = reader.chunks[1]
    raw[info.offset + info.length // 2] ^= 1
    (tmp_path / "d.pcdm").write_bytes(raw)
    with Archive(tmp_path / "d.pcdm") as file:
        file.prepare(CASCADE)
        found = list(file.images())
    errors = [item for item in found if isinstance(item, DamagedFile)]
    good = dict(item for item in found if not isinstance(item, DamagedFile))
    assert len(errors) == 1 and "photo-006.png" in str(errors[0])
    assert len(good) == len(images) - info.images and all(np.array_equal(images[name], image) for name, image in good.items())


def test_a_file_that_was_cut_short(sample, tmp_path):
    path, images = sample
    raw = path.read_bytes()
    with container.Reader(path) as reader:
        start, chunks = reader.chunks[0].offset, reader.chunks
        whole = {info.number: reader.chunk(info.number) for info in chunks}
    places = {0, 1, start, *(info.offset + info.length for info in chunks), *np.random.default_rng(0).integers(0, len(raw), 100).tolist()}
    for place in places:
        (tmp_path / "d.pcdm").write_bytes(raw[:place])
        if place < start:
            with pytest.raises(DamagedFile, match="d.pcdm"):
                Archive(tmp_path / "d.pcdm")
            continue
        with Archive(tmp_path / "d.pcdm") as file:
            assert file.reader.damage
            assert [info.number for info in file.reader.chunks] == [info.number for info in chunks if info.offset + info.length <= place]
            assert all(file.reader.chunk(info.number) == whole[info.number] for info in file.reader.chunks)


def test_payloads_that_nobody_wrote(sample, tmp_path):
    """Sound checksums around garbage: an error that names the image, never a wrong pixel, a hang or a crash."""
    with container.Reader(sample[0]) as reader:
        header, (entries, payload) = reader.header, reader.chunk(1)
    rng = np.random.default_rng(0)
    garbage = [b"", b"\x00", b"\xff" * 40, payload[:-4], payload[:50], payload + b"\0\0\0\0", payload[4:]]
    garbage += [rng.integers(0, 256, int(n), dtype=np.uint8).tobytes() for n in rng.integers(1, 4000, 25)]
    garbage += [b"\0\0\0" + rng.integers(0, 256, 4 * int(n), dtype=np.uint8).tobytes() for n in rng.integers(1, 2000, 10)]
    for number, bad in enumerate(garbage):
        with container.Writer(tmp_path / "g.pcdm", header) as writer:
            writer.add_chunk(entries, bad)
        with Archive(tmp_path / "g.pcdm") as file:
            file.prepare(CASCADE)
            with pytest.raises(DamagedFile, match="photo-"):
                file.chunk(0)


# ---------------------------------------------------------------- files that are whole or absent


def test_an_interrupted_encode_leaves_what_was_there(tmp_path):
    (tmp_path / "a.pcdm").write_bytes(b"old")
    seen = []

    def stop(count):
        seen.append(count)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(photographs(6), tmp_path / "a.pcdm", CASCADE, "tiny", MODEL_ONLY, on_evaluation=stop)
    assert (tmp_path / "a.pcdm").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_verify_finds_what_does_not_decode(tmp_path, monkeypatch):
    def wrong(codec, shapes, payload):
        return [np.zeros(shape, np.uint8) for shape in shapes]

    monkeypatch.setattr(archive, "decode_chunk", wrong)
    with pytest.raises(RuntimeError, match="photo-000.png"):
        compress(photographs(2), tmp_path / "a.pcdm", CASCADE, "tiny", FAST)
    assert not any(tmp_path.iterdir())
    compress(photographs(2), tmp_path / "a.pcdm", CASCADE, "tiny", FAST, verify=False)
    assert (tmp_path / "a.pcdm").exists()


def test_verify_reads_the_file_back(tmp_path, monkeypatch):
    class Forgetful(container.Reader):
        def chunk(self, number):
            entries, payload = super().chunk(number)
            return entries, payload[:-1] + b"?"

    monkeypatch.setattr(archive, "Reader", Forgetful)
    with pytest.raises(RuntimeError, match="the disk gave back"):
        compress(photographs(2), tmp_path / "a.pcdm", CASCADE, "tiny", FAST)
    assert not any(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    def peak(count):
        tracemalloc.start()
        compress(((f"{i}", np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)) for i in range(count)), tmp_path / "a.pcdm", CASCADE, "t",
                 Settings(steps=2, batch=4, chunk_tiles=8, plain=False))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(8)
    assert peak(40) < 1.3 * peak(16)


# ---------------------------------------------------------------- from a shell


def shell(*words, **options):
    return subprocess.run([sys.executable, "-m", "pcdm_lib", *map(str, words)], capture_output=True, text=True, **options)


def test_compress_and_decompress_from_a_shell(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    pixels = {}
    for i, (name, image) in enumerate(photographs(3) + [("sub/grey.png", np.arange(80, dtype=np.uint8).reshape(8, 10))]):
        Image.fromarray(image).save(folder / name)
        pixels[name] = image
    Image.fromarray(photographs(1)[0][1]).save(folder / "j.jpg")
    with Image.open(folder / "j.jpg") as image:
        pixels["j.jpg.png"] = np.asarray(image)
    out = tmp_path / "out.pcdm"
    done = shell("compress", folder, "-o", out, "--steps", 4, "--quiet", "--model", "photos32-wavelet")
    assert done.returncode == 0, done.stderr
    assert "5 images" in done.stdout and "bits per dimension" in done.stdout
    listed = shell("decompress", out, "--list")
    assert listed.returncode == 0 and "sub/grey.png" in listed.stdout and "photos32-wavelet" in listed.stdout
    done = shell("decompress", out, "-o", tmp_path / "back", "--quiet")
    assert done.returncode == 0, done.stderr
    for name, image in pixels.items():
        with Image.open(tmp_path / "back" / name) as back:
            assert np.array_equal(np.asarray(back), image), name
    again = shell("decompress", out, "-o", tmp_path / "back", "--quiet")
    assert again.returncode == 2 and "--force" in again.stderr
    one = shell("decompress", out, "-o", tmp_path / "one", "--only", "j.jpg", "--quiet")
    assert one.returncode == 0 and [p.name for p in (tmp_path / "one").iterdir()] == ["j.jpg.png"]
    assert "--list" in shell("decompress", out, "-o", tmp_path / "one", "--only", "nothing").stderr


@pytest.mark.parametrize("words,message", [
    (["compress", "missing.png", "-o", "a.pcdm"], "missing.png does not exist"), (["compress", ".", "-o", "a.pcdm"], "holds no images"),
    (["decompress", "text.pcdm", "-o", "x"], "text.pcdm"), (["decompress", "missing.pcdm", "-o", "x"], "missing.pcdm")])
def test_bad_input_is_one_line(tmp_path, words, message):
    (tmp_path / "text.pcdm").write_text("hello")
    done = shell(*words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, capsys):
    path = tmp_path / "a.pcdm"
    for name in ("../evil.png", "/tmp/evil.png", "a/../../evil", "..\\evil"):
        compress([(name, np.zeros((2, 2), np.uint8))], path, load_pretrained("photos32-wavelet"), "photos32-wavelet", Settings(steps=2))
        assert main(["decompress", str(path), "-o", str(tmp_path / "out"), "--quiet"]) == 2
        assert "leads out" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in photographs(4):
        Image.fromarray(np.tile(image, (8, 8, 1))).save(folder / name)
    process = subprocess.Popen([sys.executable, "-m", "pcdm_lib", "compress", str(folder), "-o", str(tmp_path / "a.pcdm"), "--steps", "60000", "--quiet"])
    deadline = time.monotonic() + 120
    while not [p for p in tmp_path.iterdir() if p.name.startswith(".a.pcdm")] and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a.pcdm").exists()

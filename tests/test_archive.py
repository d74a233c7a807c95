"""Files of images: the same to the bit, small, safe against damage, and the same on other
machines."""

import dataclasses
import errno
import gc
import inspect
import io
import json
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

from pcdm_lib import data, load_pretrained
from pcdm_lib.__main__ import main
from pcdm_lib.coding import Archive, Settings, archive, compress, container, tiles
from pcdm_lib.coding import chunks as chunks_module
from pcdm_lib.coding.archive import WrongModel
from pcdm_lib.coding.chunks import Statistics
from pcdm_lib.coding.container import DamagedFile, UnknownVersion
from pcdm_lib.commands import files as commands
from pcdm_lib.data.files import write_png
from pcdm_lib.models import kept, presets, pretrained
from pcdm_lib.models.config import ModelConfig


def small_cascade(map_name: str = "wavelet", levels: int = 1, channels: int = 3, seed: int = 0):
    """A tiny cascade whose weights are plain numbers, not draws of a generator that another version
    might change."""
    config = ModelConfig(
        map=map_name,
        levels=levels,
        image_shape=(channels, 16, 16),
        channels=(8, 8),
        blocks=1,
        attention=True,
        gamma_max=(5.0,),
    )
    cascade = presets.build(config)
    with torch.no_grad():
        for number, (_name, p) in enumerate(sorted(cascade.named_parameters())):
            k = torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape) + 17 * number + seed
            p.copy_((torch.remainder(k * 0.6180339887, 1.0) - 0.5) * 0.3)
    return cascade.eval()


CASCADE = small_cascade()
FAST = Settings(steps=3, batch=4, chunk_tiles=6)
MODEL_ONLY = Settings(steps=3, batch=4, chunk_tiles=6, plain=False)


def photographs(count: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    found = data.load_data("photos").heldout
    return [
        (
            f"photo-{i:03d}.png",
            found[(seed + 7 * i) % len(found)].permute(1, 2, 0).numpy()[:16, :16],
        )
        for i in range(count)
    ]


def assert_round_trip(tmp_path, images, settings=FAST, cascade=CASCADE, **prepare) -> Statistics:
    path = tmp_path / "a.pcdm"
    statistics = compress(images, path, cascade, "tiny", settings)
    with Archive(path) as file:
        file.prepare(cascade, **prepare)
        found = list(file.images())
    assert [name for name, _ in found] == [name for name, _ in images]
    for (name, given_), (_, back) in zip(images, found):
        assert back.dtype == np.uint8 and np.array_equal(given_, back), name
    # every byte is in the statistics
    assert abs(statistics.total_bits - 8 * path.stat().st_size) < 1e-6 * statistics.total_bits
    return statistics


def odd_images() -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    board = (np.indices((17, 18)).sum(0) % 2 * 255).astype(np.uint8)
    one = np.full((16, 16, 3), 128, np.uint8)
    one[5, 6, 1] = 129
    return [
        ("noise", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)),
        ("constant", np.full((20, 16, 3), 7, np.uint8)),
        ("checkerboard", board),
        ("one pixel changed", one),
        ("1x1", np.full((1, 1, 3), 250, np.uint8)),
        ("1x1 grey", np.zeros((1, 1), np.uint8)),
        ("row", rng.integers(0, 256, (1, 33, 3), dtype=np.uint8)),
        ("column", rng.integers(0, 256, (35, 1), dtype=np.uint8)),
        ("grey", rng.integers(100, 110, (19, 23), dtype=np.uint8)),
        ("ünïcode/name", np.full((3, 2, 3), 1, np.uint8)),
    ]


@pytest.mark.parametrize("settings_", [FAST, MODEL_ONLY], ids=["as it is", "by the model alone"])
@pytest.mark.parametrize(
    "system",
    [
        ("wavelet", 1, 3),
        ("wavelet", 2, 3),
        ("laplacian", 1, 3),
        ("vdm", 0, 3),
        ("wavelet", 1, 1),
    ],
    ids=str,
)
def test_round_trip_of_odd_images(tmp_path, system, settings_):
    assert_round_trip(
        tmp_path, odd_images() + photographs(4), settings_, small_cascade(*system), network_batch=3
    )


@pytest.mark.parametrize("settings_", [FAST, MODEL_ONLY], ids=["as it is", "by the model alone"])
def test_round_trip_of_a_large_image(tmp_path, settings_):
    rng = np.random.default_rng(1)
    smooth = np.clip(np.cumsum(rng.normal(0, 2, (100, 150, 3)), axis=1) + 128, 0, 255).astype(
        np.uint8
    )
    assert_round_trip(tmp_path, [("large", smooth)], settings_)


@given(
    hnp.arrays(
        np.uint8,
        st.one_of(
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=40),
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda s: (*s, 3)),
        ),
    ),
    st.booleans(),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_round_trip_of_any_array(tmp_path, image, plain):
    assert_round_trip(tmp_path, [("x", image)], FAST if plain else MODEL_ONLY)


def test_round_trip_of_cifar10(tmp_path):
    root = os.environ.get("PCDM_DATA", "")
    if not root or not os.path.isdir(os.path.join(root, "cifar-10-batches-bin")):
        pytest.skip("CIFAR-10 is not in $PCDM_DATA")
    found = data.load_data("cifar10", root=root).heldout[:8]
    assert_round_trip(
        tmp_path,
        [(str(i), image.permute(1, 2, 0).numpy()) for i, image in enumerate(found)],
        MODEL_ONLY,
    )


def test_images_that_a_model_expands_are_stored_by_a_plain_codec(tmp_path):
    rng = np.random.default_rng(0)
    images = [
        (f"noise{i}", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for i in range(8)
    ] + [("flat", np.zeros((64, 64, 3), np.uint8))]
    statistics = assert_round_trip(tmp_path, images)
    assert statistics.plain_images == 9
    png = 0
    for _, image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", optimize=True)
        png += len(buffer.getvalue())
    assert (tmp_path / "a.pcdm").stat().st_size < png + 400


def test_a_trained_model_pays_the_bound_and_the_books_add_up(tmp_path):
    """The shipped wavelet cascade on held-out photographs: the stack grows by the densities' own
    value on the latents of the file, or by less."""
    found = data.load_data("photos").heldout[::20][:4]
    images = [(f"{i}.png", image.permute(1, 2, 0).numpy()) for i, image in enumerate(found)]
    statistics = assert_round_trip(
        tmp_path, images, Settings(steps=30, plain=False), load_pretrained("photos32-wavelet")
    )
    assert statistics.model_images == 4 and 3.0 < statistics.net_bpd < 8.0
    assert statistics.model_bits / statistics.ideal_bits < 1.005
    # the statistics add up to the stack
    assert (
        abs(sum(row.sum() for row in statistics.steps.values()) / statistics.model_bits - 1) < 0.005
    )
    assert abs(sum(statistics.image_bits.values()) / statistics.model_bits - 1) < 0.005 and [
        *statistics.image_bits
    ] == [*range(4)]
    assert set(statistics.steps) == {"base", "details1"} and all(
        len(row) == 32 for row in statistics.steps.values()
    )


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize(
    "image,message",
    [
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((4, 4), np.uint16), "uint8"),
        (np.zeros((4, 4, 4), np.uint8), "grey image"),
        (np.zeros((0, 4), np.uint8), "grey image"),
        (np.zeros(4, np.uint8), "grey image"),
        ([[1]], "uint8"),
    ],
)
def test_what_is_no_image_is_refused_and_nothing_written(tmp_path, image, message):
    with pytest.raises(ValueError, match=message):
        compress(
            [("good", np.zeros((4, 4), np.uint8)), ("bad", image)],
            tmp_path / "a.pcdm",
            CASCADE,
            "tiny",
            FAST,
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 1},
        {"fineness": 0.0},
        {"batch": 0},
        {"chunk_tiles": 0},
        {"chunk_tiles": 10**9},
        {"side": 0},
        {"precision": "bf16"},
    ],
)
def test_settings_that_no_file_has(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Settings(**change)


def test_models_that_files_cannot_have(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        compress(photographs(1), tmp_path / "a.pcdm", small_cascade("standard"), "tiny", FAST)
    with pytest.raises(ValueError, match="8-bit"):
        compress(
            photographs(1),
            tmp_path / "a.pcdm",
            presets.build(ModelConfig(image_shape=(1, 4, 4), max_value=3, channels=(8,), blocks=1)),
            "t",
            FAST,
        )
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
        for other in (
            small_cascade(seed=1),
            small_cascade("laplacian"),
            small_cascade("vdm", 0),
        ):
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
    with (
        container.Reader(path) as reader,
        container.Writer(target, reader.header | changes) as writer,
    ):
        for info in reader.chunks:
            writer.add_chunk(*reader.chunk(info.number))
    return target


def test_other_versions_machines_and_tables_are_refused(sample, tmp_path):
    for changes, message in (
        ({"coding": 99}, "version 99"),
        ({"tables": 1}, "other tables"),
        ({"precision": "float32", "machine": "abacus"}, "abacus"),
    ):
        changed = rewritten(sample[0], tmp_path / "b.pcdm", **changes)
        with Archive(changed) as file, pytest.raises(WrongModel, match=message):
            file.prepare(CASCADE)
    for changes in ({"steps": "many"}, {"fineness": -1}, {"batch": 0}, {"side": 10**400}):
        with pytest.raises(DamagedFile, match="how the file was written"):
            Archive(rewritten(sample[0], tmp_path / "b.pcdm", **changes))
    raw = bytearray(sample[0].read_bytes())
    length = int.from_bytes(raw[10:14], "little")
    raw[8] = 7
    raw[14:18] = zlib.crc32(raw[18 : 18 + length], zlib.crc32(raw[:14])).to_bytes(4, "little")
    (tmp_path / "c.pcdm").write_bytes(raw)
    with pytest.raises(UnknownVersion, match="7"):
        Archive(tmp_path / "c.pcdm")


def test_a_float32_file_decodes_here(tmp_path):
    path = tmp_path / "a.pcdm"
    images = photographs(5)
    compress(
        images, path, CASCADE, "tiny", Settings(steps=3, batch=2, precision="float32", plain=False)
    )
    with Archive(path) as file:
        with pytest.raises(ValueError, match="network_batch"):
            file.prepare(CASCADE, network_batch=5)
        file.prepare(CASCADE)
        assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(images, file.images()))


# ---------------------------------------------------------------- the same on other machines


# the cascade's source instead of this module, which imports much that no decoder needs
SCRIPT = f"""
import sys, numpy as np, torch
from pcdm_lib.coding import Archive
from pcdm_lib.models import presets
from pcdm_lib.models.config import ModelConfig
{inspect.getsource(small_cascade)}
torch.set_num_threads(int(sys.argv[2]))
with Archive(sys.argv[1]) as file:
    file.prepare(small_cascade(), network_batch=int(sys.argv[3]))
    found = dict(file.images())
np.savez(sys.argv[4], **found)
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize(
    "threads,batch,environment",
    [
        (1, 1, {}),
        (2, 7, {}),
        (2, 3, {"ATEN_CPU_CAPABILITY": "default"}),
        (1, 4, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "SSE41"}),
        (
            2,
            4,
            {
                "ONEDNN_MAX_CPU_ISA": "AVX",
                "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
            },
        ),
    ],
)
def test_a_fresh_process_with_other_threads_batches_and_instructions_decodes(
    sample, tmp_path, threads, batch, environment
):
    path, images = sample
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(path),
            str(threads),
            str(batch),
            str(tmp_path / "o.npz"),
        ],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment,
    )
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
8f5043444d0d0a1a01007e0000006008b3b80d8d410ec3200c04ffe233aaa00112f88dc14e6a2985a87089aafebd3e8e343bfb8577273e21c3947683019283c7545edc1657b4a9d216c31e
2a3a4fb85af2c5524d18d5ad9da41d909d8131f91a901703bb346e3c14ec23182838eb0bb2574588d58d06ae0f5719d29bdeec67c719bdd626969375f6f42e25ef825d7e7f8e43484b2900
0000e7030000000000009c6d12f1e4d36ccf0000032b4acc2d60482f4aad64c8cf4b656064666665640462664646004b3f53895d283a020a837d0d00000015d786f0af361bd4dbe544c3a9
57000c807d002a801a002c007c002680890027004a005c0056000400100017003e000a00000004000000000000000000000000000000000000000000000000000000000000000000000000
8ee651cf67937f3affffff4bce75ff01757546610000004affffffabffffffffffffffffffffffffff67dda8eec007bb427afc7b5920002c8011000b802e002a001700110010001400ab00
1b00020008000a002f0000000c0000000000000000000000000000000000000000000000000000000000000000ffffff00ffffffffffffffff6eb131de54cbfd230600000000000000ffff
ff00ffffffff000000fffbffffff60df7cac7d37431d4bdd4a977066b08208b000d99448005a80c900808022003d80110028001b0001800100f00000000000000000000000000000000000
00000000000000ffffffff344fecd0ffffff92b0ffffe6000000ffffffffffe96cc28a679f6ef0db06001b804f002b803e001480380006008b010a00010000800100000000000000000000
00000000000000fe0df0f9fa96bf5de3fb5270fdc02602560b55003a3b52008a8019000e807a0015007d00248019002900080007803b003a8069001b001400010000000000000000000000
00000000000000000000000000000000000000000000000000ffffff0000000000000000005b6cee8e0a71ffc4af844b43ffffff76ffffffd9000000fff5ffffff60c621d9000000ff62a1
02ec918bbe585510000600160039003e007b8028000180d80019007b003e003600300076000a00890017000000ed0000000000000000000000000000000000000000000000000000000000
0000005216c918ffffff81b5e7c38803000094ffffffb179c4c9e5ffffffffffffffffffffffffffffffffffffffff000000f6000000ff676a55fbefe357667f76220c11a170168a38045f
9081b3653d1e0021dd130029004400330033002f8019002f8079000e002e020180010000800100000000000000000000000000000000000000000000ffffff00000000ffffffffffffffff
ffffffff00fbffff0000000000ee117a14c849649a9eaf0007804500818036004b8000011680e600a80021000f8074017700cc008b800100f3800000000000000000000000000000000000
000000000000000000000000000000000000ffffffffffffffffffffffffffffffffffffffffffffff7fffffffffffffffff1812be119770fd83560700015821ffb4f1ffff86faffffff0b
aded15feffffa7ce9cc57a67fbfffa59eaff0708d015521c78980b8254005dfc0100fd00010000e962b15cc36a0123a834009a80010000e104c692211800c84f0000d8fbfffff961edbca0
0500009f1ce0000001a8080304000000c6e1b0a68e454e44
"""


def golden_images() -> list[tuple[str, np.ndarray]]:
    ramp = np.arange(3 * 5 * 3).reshape(3, 5, 3)
    return [
        ("ramp", (ramp // 3).astype(np.uint8)),
        ("grey", (ramp[..., 0] * 7 % 256).astype(np.uint8)),
        ("one", np.full((1, 1, 3), 200, np.uint8)),
    ]


def test_golden_file(tmp_path):
    """Freezes the format and the arithmetic: this file was written once, on an AMD EPYC, and has to
    decode everywhere and for good."""
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
        assert [a.reader.chunk(i.number) for i in a.reader.chunks] == [
            b.reader.chunk(i.number) for i in b.reader.chunks
        ]


# ---------------------------------------------------------------- damage


def test_every_byte_of_the_header_and_two_thousand_of_the_rest(sample, tmp_path):
    """A flipped byte is an error or a notice that names what it concerns; whatever is decoded all
    the same is what was written."""
    path, _images = sample
    raw = path.read_bytes()
    with container.Reader(path) as reader:
        start, chunks = reader.chunks[0].offset, reader.chunks
        whole = {info.number: reader.chunk(info.number) for info in chunks}
    rng = np.random.default_rng(0)
    work = tmp_path / "d.pcdm"
    for place in [*range(start), *rng.integers(start, len(raw), 2000).tolist()]:
        work.write_bytes(
            raw[:place] + bytes([raw[place] ^ int(rng.integers(1, 256))]) + raw[place + 1 :]
        )
        if place < start:
            with pytest.raises((DamagedFile, UnknownVersion), match="d.pcdm"):
                Archive(work)
            continue
        hit = next(
            (info.number for info in chunks if info.offset <= place < info.offset + info.length),
            None,
        )
        with Archive(work) as file:
            assert hit is not None or file.reader.damage
            for info in chunks:
                if info.number != hit:
                    assert file.reader.chunk(info.number) == whole[info.number]
                    continue
                with pytest.raises(DamagedFile) as error:
                    file.reader.chunk(info.number)
                first, last = info.first_image + 1, info.first_image + info.images
                assert (
                    "'photo-" in str(error.value)
                    or f"{first} to {last}" in str(error.value)
                    or f"image {first}" in str(error.value)
                )


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
    assert len(good) == len(images) - info.images and all(
        np.array_equal(images[name], image) for name, image in good.items()
    )


def test_a_file_that_was_cut_short(sample, tmp_path):
    path, _images = sample
    raw = path.read_bytes()
    with container.Reader(path) as reader:
        start, chunks = reader.chunks[0].offset, reader.chunks
        whole = {info.number: reader.chunk(info.number) for info in chunks}
    places = {
        0,
        1,
        start,
        *(info.offset + info.length for info in chunks),
        *np.random.default_rng(0).integers(0, len(raw), 100).tolist(),
    }
    for place in places:
        (tmp_path / "d.pcdm").write_bytes(raw[:place])
        if place < start:
            with pytest.raises(DamagedFile, match="d.pcdm"):
                Archive(tmp_path / "d.pcdm")
            continue
        with Archive(tmp_path / "d.pcdm") as file:
            assert file.reader.damage
            assert [info.number for info in file.reader.chunks] == [
                info.number for info in chunks if info.offset + info.length <= place
            ]
            assert all(
                file.reader.chunk(info.number) == whole[info.number] for info in file.reader.chunks
            )


def test_payloads_that_nobody_wrote(sample, tmp_path):
    """Sound checksums around garbage: an error that names the image, never a wrong pixel, a hang or
    a crash."""
    with container.Reader(sample[0]) as reader:
        header, (entries, payload) = reader.header, reader.chunk(1)
    rng = np.random.default_rng(0)
    garbage = [
        b"",
        b"\x00",
        b"\xff" * 40,
        payload[:-4],
        payload[:50],
        payload + b"\0\0\0\0",
        payload[4:],
    ]
    garbage += [
        rng.integers(0, 256, int(n), dtype=np.uint8).tobytes() for n in rng.integers(1, 4000, 25)
    ]
    garbage += [
        b"\0\0\0" + rng.integers(0, 256, 4 * int(n), dtype=np.uint8).tobytes()
        for n in rng.integers(1, 2000, 10)
    ]
    for bad in garbage:
        with container.Writer(tmp_path / "g.pcdm", header) as writer:
            writer.add_chunk(entries, bad)
        with Archive(tmp_path / "g.pcdm") as file:
            file.prepare(CASCADE)
            with pytest.raises(DamagedFile, match="photo-"):
                file.chunk(0)


@pytest.mark.parametrize(
    "shapes",
    [[(3, 65535, 65535)], [(1, 20000, 20000)], [(3, 65535, 1)] * 20_000, [(3, 8000, 2700)]],
)
def test_shapes_that_nobody_wrote_cost_no_memory(sample, tmp_path, shapes):
    """A few bytes with sound checksums that speak of giant images: refused before anything is made
    for them, or soon."""
    with container.Reader(sample[0]) as reader:
        header = reader.header
    with container.Writer(tmp_path / "g.pcdm", header) as writer:
        writer.add_chunk(
            [container.Entry(f"giant{i}", shape, 0) for i, shape in enumerate(shapes)],
            b"\0\0\0" + bytes(range(40)),
        )
    tracemalloc.start()
    with Archive(tmp_path / "g.pcdm") as file:
        file.prepare(CASCADE)
        with pytest.raises(DamagedFile, match="giant0"):
            file.chunk(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e8


# ---------------------------------------------------------------- images of any size

IN_PIECES = dataclasses.replace(FAST, piece=3 * 40 * 40)


def smooth(height: int, width: int) -> np.ndarray:
    steps = np.random.default_rng(1).normal(0, 2, (height, width, 3))
    return np.clip(np.cumsum(steps, axis=1) + 128, 0, 255).astype(np.uint8)


def with_a_large_one() -> list[tuple[str, np.ndarray]]:
    return [*photographs(2), ("large.png", smooth(70, 90)), *odd_images()[:3]]


@pytest.mark.parametrize("plain", [True, False], ids=["as it is", "by the model alone"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_is_coded_in_pieces(tmp_path, plain, channels):
    settings_ = dataclasses.replace(IN_PIECES, plain=plain)
    cascade = small_cascade(channels=channels)
    statistics = assert_round_trip(tmp_path, with_a_large_one(), settings_, cascade)
    assert statistics.extra_pieces == 5 and "6 images in 11 pieces" in str(statistics)
    with Archive(tmp_path / "a.pcdm") as file:
        assert file.reader.version == 2
        assert file.names() == [name for name, _ in with_a_large_one()]
        file.prepare(cascade)
        ((name, image),) = file.images(["large.png"])
        assert name == "large.png" and np.array_equal(image, smooth(70, 90))


def test_a_damaged_or_missing_piece_costs_its_image_alone(tmp_path, monkeypatch):
    path, images = tmp_path / "a.pcdm", dict(with_a_large_one())
    compress(images.items(), path, CASCADE, "tiny", IN_PIECES, verify=False)
    raw = path.read_bytes()
    with container.Reader(path) as reader:
        pieces = [i for i in reader.chunks if reader.entries(i.number)[0].piece]
        rest = [reader.chunk(i.number) for i in reader.chunks if i != pieces[4]]
        header = reader.header
    last = pieces[-1].offset + pieces[-1].length
    damaged = {
        "payload": raw[: last - 1] + bytes([raw[last - 1] ^ 1]) + raw[last:],
        "header": raw[: pieces[3].offset + 9] + b"?" + raw[pieces[3].offset + 10 :],
    }
    for name, bad in damaged.items():
        (tmp_path / f"{name}.pcdm").write_bytes(bad)
    with container.Writer(tmp_path / "missing.pcdm", header) as writer:
        for chunk in rest:
            writer.add_chunk(*chunk)
    decoded = []
    whole = Archive.chunk
    monkeypatch.setattr(Archive, "chunk", lambda *a: decoded.append(a[1]) or whole(*a))
    for name in (*damaged, "missing"):
        with Archive(tmp_path / f"{name}.pcdm") as file:
            file.prepare(CASCADE)
            decoded.clear()
            found = list(file.images())
        errors = [item for item in found if isinstance(item, DamagedFile)]
        assert any("large.png" in str(error) for error in errors)
        assert len(found) - len(errors) == 5 and len(decoded) < len(pieces)  # no piece was decoded
        whole_ones = [item for item in found if not isinstance(item, DamagedFile)]
        assert all(np.array_equal(images[n], i) for n, i in whole_ones)


@pytest.mark.parametrize(
    "shape",
    [(3, 4000, 6000), (1, 70000, 1), (3, 1, 200_000), (1, 40000, 65536), (3, 30, 30)],
)
@pytest.mark.parametrize("side, most", [(32, 1 << 22), (300, 1 << 16), (1, 7), (60000, 100)])
def test_pieces_fill_their_image(shape, side, most):
    channels, height, width = shape
    if height * width / most > 1e5:
        pytest.skip("too many to count")
    found = tiles.pieces(shape, side, most, container.MAX_SIDE)
    if len(found) > 1:
        entries = [
            container.Entry("x", (channels, b.height, b.width), 0, (b.top, b.left, height, width))
            for b in found
        ]
        assert archive._fills(entries, *shape)
        assert not archive._fills(entries[:-1], *shape)
        assert not archive._fills(entries[::-1], *shape)
    assert all(b.height * b.width * channels <= max(most, channels) for b in found)
    assert max(max(b.height, b.width) for b in found) <= container.MAX_SIDE


def test_24_megapixels_are_cut_piece_by_piece():
    """No copy of the image is made, and every chunk is small."""
    codec = chunks_module.ImageCodec(CASCADE, Settings(steps=2))
    image = np.broadcast_to(np.uint8(7), (4000, 6000, 3))
    tracemalloc.start()
    samples = 0
    for entries, (piece,) in archive._chunks(codec, [("photo.jpg", image)]):
        assert entries[0].shape == piece.shape and piece.size <= chunks_module.PIECE
        samples += piece.size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == image.size and peak < 4 * chunks_module.PIECE


def test_memory_does_not_grow_with_the_size_of_an_image(tmp_path):
    settings_ = Settings(steps=2, batch=4, plain=False, piece=3 * 48 * 48)

    def peak(width):
        image = smooth(48, width)
        gc.freeze()  # what is there already need not be looked through again and again
        tracemalloc.start()
        compress(
            [("x", image)],
            tmp_path / "a.pcdm",
            CASCADE,
            "t",
            settings_,
            on_evaluation=lambda _: gc.collect(),  # codecs refer to themselves
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gc.unfreeze()
        return found

    peak(48)
    assert peak(288) < 1.2 * peak(96)


def test_an_image_larger_than_any_is_refused_before_its_memory_is_taken(tmp_path):
    with (
        Archive(sample_of_pieces(tmp_path, 1 << 20)) as file,
        pytest.raises(DamagedFile, match="malicious"),
    ):
        file._whole([(i, file.reader.entries(i.number)) for i in file.reader.chunks])


def sample_of_pieces(tmp_path, side):
    compress([("s", np.zeros((2, 2), np.uint8))], tmp_path / "s.pcdm", CASCADE, "t", FAST)
    with container.Reader(tmp_path / "s.pcdm") as reader:
        header = reader.header
    with container.Writer(tmp_path / "p.pcdm", header) as writer:
        place = container.Piece(0, 0, side, side)
        writer.add_chunk([container.Entry("giant", (1, 9, 9), 0, place)], b"")
    return tmp_path / "p.pcdm"


# ---------------------------------------------------------------- files that are whole or absent


def test_an_interrupted_encode_leaves_what_was_there(tmp_path):
    (tmp_path / "a.pcdm").write_bytes(b"old")
    seen = []

    def stop(count):
        seen.append(count)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(
            photographs(6), tmp_path / "a.pcdm", CASCADE, "tiny", MODEL_ONLY, on_evaluation=stop
        )
    assert (tmp_path / "a.pcdm").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_verify_finds_what_does_not_decode(tmp_path, monkeypatch):
    def wrong(codec, shapes, payload):
        return [np.zeros(shape, np.uint8) for shape in shapes]

    monkeypatch.setattr(chunks_module, "decode_chunk", wrong)
    with pytest.raises(archive.NotVerified, match="photo-000.png"):
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
    with pytest.raises(archive.NotVerified, match="the disk gave back"):
        compress(photographs(2), tmp_path / "a.pcdm", CASCADE, "tiny", FAST)
    assert not any(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    def peak(count):
        tracemalloc.start()
        compress(
            (
                (
                    f"{i}",
                    np.random.default_rng(i).integers(
                        0, 256, (16 - i % 7, 16 - i % 5, 3), dtype=np.uint8
                    ),
                )
                for i in range(count)
            ),
            tmp_path / "a.pcdm",
            CASCADE,
            "t",
            Settings(steps=2, batch=4, chunk_tiles=8, plain=False),
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(8)
    assert peak(40) < 1.3 * peak(16)


# ---------------------------------------------------------------- from a shell


def shell(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "pcdm_lib", *map(str, words)],
        capture_output=True,
        text=True,
        **options,
    )


def test_compress_and_decompress_from_a_shell(tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    pixels = {}
    grey = np.arange(80, dtype=np.uint8).reshape(8, 10)
    for name, image in [*photographs(3), ("sub/grey.png", grey)]:
        Image.fromarray(image).save(folder / name)
        pixels[name] = image
    Image.fromarray(photographs(1)[0][1]).save(folder / "j.jpg")
    with Image.open(folder / "j.jpg") as image:
        pixels["j.jpg.png"] = np.asarray(image)
    out = tmp_path / "out.pcdm"
    done = shell(
        "compress", folder, "-o", out, "--steps", 4, "--quiet", "--model", "photos32-wavelet"
    )
    assert done.returncode == 0, done.stderr
    assert "5 images" in done.stdout and "bits per dimension" in done.stdout
    assert main(["decompress", str(out), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "sub/grey.png" in listed and "photos32-wavelet" in listed
    done = shell("decompress", out, "-o", tmp_path / "back", "--quiet")
    assert done.returncode == 0, done.stderr
    for name, image in pixels.items():
        with Image.open(tmp_path / "back" / name) as back:
            assert np.array_equal(np.asarray(back), image), name
    # the same commands without a process of their own, which imports everything anew
    words = ["decompress", str(out), "-o"]
    assert main([*words, str(tmp_path / "back"), "--quiet"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "one"), "--only", "j.jpg", "--quiet"]) == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["j.jpg.png"]
    assert main([*words, str(tmp_path / "one"), "--only", "nothing"]) == 2
    assert "--list" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    """The first from a process of its own: nothing else may come into its standard error."""
    (tmp_path / "text.pcdm").write_text("hello")
    first = ["compress", "missing.png", "-o", "a.pcdm"]
    done = shell(*first, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()})
    said = [(done.returncode, done.stderr, "missing.png does not exist")]
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (first, "missing.png does not exist"),
        (["compress", ".", "-o", "a.pcdm"], "holds no images"),
        (["decompress", "text.pcdm", "-o", "x"], "text.pcdm"),
        (["decompress", "missing.pcdm", "-o", "x"], "missing.pcdm"),
    ):
        status = main(words)
        said.append((status, capsys.readouterr().err, message))
    for status, error, message in said:
        assert status == 2 and message in error and error.count("\n") == 1
        assert "Traceback" not in error


def test_more_than_eight_bits_are_found_before_any_work(tmp_path, capsys):
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(tmp_path / "clear.png")
    assert (
        main(["compress", str(tmp_path / "clear.png"), "-o", str(tmp_path / "a.pcdm"), "--quiet"])
        == 2
    )
    assert "transparency" in capsys.readouterr().err and not (tmp_path / "a.pcdm").exists()


def test_a_path_in_a_strangers_file_is_not_followed(sample, tmp_path, capsys):
    assert main(["decompress", str(sample[0]), "-o", str(tmp_path / "out"), "--quiet"]) == 2
    assert "name the run by --model" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, capsys):
    path = tmp_path / "a.pcdm"
    for name in ("../evil.png", "/tmp/evil.png", "a/../../evil", "..\\evil"):
        compress(
            [(name, np.zeros((2, 2), np.uint8))],
            path,
            load_pretrained("photos32-wavelet"),
            "photos32-wavelet",
            Settings(steps=2),
        )
        assert main(["decompress", str(path), "-o", str(tmp_path / "out"), "--quiet"]) == 2
        assert "leads out" in capsys.readouterr().err and not (tmp_path / "out").exists()


def pictures(folder, *names):
    """Files of these names, and their pixels."""
    found = {}
    for number, name in enumerate(names):
        image = np.full((4, 5, 3), 40 * number, np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
        found[name] = image
    return found


def test_names_that_no_file_can_have_are_named_and_the_others_written(tmp_path, capsys):
    long = "写" * 82 + ".png"
    names = ("x.jpg", "x.jpg.png", "album\\1.png", long, "A.png", "a.png")
    given_ = pictures(tmp_path / "in", *names)
    path, out = tmp_path / "a.pcdm", tmp_path / "out"
    words = ["-o", str(path), "--model", "photos32-wavelet", "--steps", "2", "--quiet"]
    assert main(["compress", str(tmp_path / "in"), *words]) == 0
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2 and "'x.jpg' (it would become" in warned[0]
    assert "backslash" in warned[1] and "on some systems" in warned[1]
    assert main(["decompress", str(path), "-o", str(out), "--quiet"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "not written: 'x.jpg'" in said.err
    assert {p.name for p in out.iterdir()} == {*names} - {"x.jpg"}
    for name in {*names} - {"x.jpg"}:
        with Image.open(out / name) as image:
            assert np.array_equal(np.asarray(image), given_[name])
    again = ["decompress", str(path), "-o", str(tmp_path / "all"), "--rename", "--quiet"]
    assert main(again) == 0
    said = capsys.readouterr().out
    (renamed,) = [line for line in said.splitlines() if " is " in line]
    number = list(Archive(path).names()).index("x.jpg") + 1
    assert renamed == f"image-{number:05d}.png is 'x.jpg'"
    assert (tmp_path / "all" / f"image-{number:05d}.png").exists()
    only = ["decompress", str(path), "-o", str(tmp_path / "one"), "--only", "x.jpg", "--quiet"]
    assert main(only) == 0 and [p.name for p in (tmp_path / "one").iterdir()] == ["x.jpg.png"]


def test_all_bad_inputs_are_found_at_once_before_any_work(tmp_path, capsys, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(archive, "compress", work)
    pictures(tmp_path, "a.png", "cut.png", "z.bmp", "\udcff.png", "b" * 100 + "/n.png")
    (tmp_path / "z.bmp").rename(tmp_path / "z.png")
    whole = tmp_path.joinpath("cut.png").read_bytes()
    tmp_path.joinpath("cut.png").write_bytes(whole[:50])
    words = ["compress", str(tmp_path), "-o", str(tmp_path / "a.pcdm"), "--quiet"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "3 of 5 images cannot be stored" in said
    assert "cut.png cannot be read: it is damaged or cut short" in said
    assert "z.png cannot be read: it is no PNG, JPEG or WebP file" in said and "UTF-8" in said
    assert not (tmp_path / "a.pcdm").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tile", "0"], "'--tile': expected a whole number from 1 to 65535, got 0"),
        (["--chunk", "0"], "'--chunk': expected a whole number from 1 to"),
        (["--steps", "1"], "'--steps': expected a whole number from 2 to 65535, got 1"),
        (["--batch", "-3"], "'--batch': expected a whole number from 1 to"),
    ],
)
def test_settings_are_refused_in_the_shells_words(tmp_path, capsys, words, message):
    pictures(tmp_path, "a.png")
    assert main(["compress", str(tmp_path), "-o", str(tmp_path / "a.pcdm"), *words]) == 2
    assert message in capsys.readouterr().err


def test_24_megapixels_are_not_refused(tmp_path, capsys):
    Image.new("L", (6000, 4000), 90).save(tmp_path / "large.png")
    Image.new("L", (1, 70000), 90).save(tmp_path / "tall.png")
    words = ["--model", "photos32-vdm", "--steps", "2", "--dry-run"]
    assert main(["compress", str(tmp_path), "-o", "a.pcdm", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"] == 2 and facts["evaluations"] > 2 * 2 * 23000
    assert main(["compress", str(tmp_path), "-o", "a.pcdm", "--dry-run"]) == 0
    facts = json.loads(capsys.readouterr().out)
    # a third of the pixels are blocks, coded and decoded
    assert 0.99 < facts["evaluations"] / (2 * (6000 * 4000 + 70000) / 3) < 1.01


def test_a_model_kept_beside_its_file_outlives_the_run(tmp_path, capsys):
    """The file names a run that is gone; what was kept decodes it."""
    path, kept_ = tmp_path / "a.pcdm", tmp_path / "a.pcdm.model"
    cascade, headers = pretrained.open_model(["photos32-wavelet"])
    compress(photographs(1), path, cascade, "gone", Settings(steps=2, plain=False))
    words = ["decompress", str(path), "-o", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "a.pcdm.model is no kept model" in said and archive.digest(cascade) in said
    kept.keep(cascade, headers, kept_)
    kept.keep(cascade, headers, kept_)  # again is no error
    found, again = pretrained.open_model([kept_])
    assert archive.digest(found) == archive.digest(cascade)
    assert again[0]["config"] == headers[0]["config"] and again[0]["data"] == headers[0]["data"]
    assert main(words) == 0
    (kept_ / "base.safetensors").unlink()
    with pytest.raises(ValueError, match="base.safetensors is missing"):
        kept.load_kept(kept_)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="no kept model"):
        kept.keep(cascade, headers, tmp_path / "mine")


def test_compress_keeps_the_model(tmp_path, capsys):
    pictures(tmp_path / "in", "a.png")
    words = ["--model", "photos32-wavelet", "--steps", "2", "--quiet", "--with-model"]
    assert main(["compress", str(tmp_path / "in"), "-o", str(tmp_path / "a.pcdm"), *words]) == 0
    assert kept.is_kept(tmp_path / "a.pcdm.model")
    (tmp_path / "b.pcdm.model").mkdir()
    assert main(["compress", str(tmp_path / "in"), "-o", str(tmp_path / "b.pcdm"), *words]) == 2
    assert "no kept model" in capsys.readouterr().err and not (tmp_path / "b.pcdm").exists()


def test_images_written_before_an_error_stay(sample, tmp_path, monkeypatch):
    done = []

    def full(path, pixels):
        if len(done) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(path)
        write_png(path, pixels)

    monkeypatch.setattr("pcdm_lib.data.files.write_png", full)
    monkeypatch.setattr(pretrained, "open_model", lambda *_: (CASCADE, []))
    with pytest.raises(OSError, match=r"No space left.*the 3 images before it are whole"):
        commands.decompress(sample[0], tmp_path / "out", ["tiny"], quiet=True, device="cpu")
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in photographs(4):
        Image.fromarray(np.tile(image, (8, 8, 1))).save(folder / name)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pcdm_lib",
            "compress",
            str(folder),
            "-o",
            str(tmp_path / "a.pcdm"),
            "--model",
            "photos32-wavelet",
            "--steps",
            "60000",
            "--quiet",
        ]
    )
    deadline = time.monotonic() + 120
    while (
        not [p for p in tmp_path.iterdir() if p.name.startswith(".a.pcdm")]
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a.pcdm").exists()

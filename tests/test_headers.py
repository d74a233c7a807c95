"""What a configuration and a checkpoint say of themselves is checked before anything is made of
it: ranges of settings, keys of config.json, types of weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pcdm_lib.__main__ import main
from pcdm_lib.models import checkpoints, headers, kept, memory, presets, pretrained
from pcdm_lib.models.config import Config
from pcdm_lib.training.trainer import Trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    config = presets.preset("tiny", image_shape=(3, 8, 8)).override({"batch_size": 2})
    images = torch.arange(4 * 3 * 8 * 8).reshape(4, 3, 8, 8).to(torch.uint8)
    Trainer(config, images, folder, data={"label": "lines"}).run(steps=1, progress=False)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


# ---------------------------------------------------------------- settings

WHOLE = ("batch_size", "blocks", "levels", "max_value", "warmup_steps", "base_blocks")
REAL = ("learning_rate", "muon_rate", "beta1", "ema", "weight_decay", "clip", "dropout")
FIXED = {
    "channels": ("0", "-8", "8,0", "99999999", "1.5", "", "x", "nan", "inf"),
    "base_channels": ("0", "-1", "1e9", "8,x"),
    "gamma_min": ("nan", "inf", "-1e9", "x"),
    "gamma_max": ("", "nan", "-inf", "1e300"),
    "sigma_ratio": ("0", "-1", "nan", "inf"),
    "image_shape": ("3,32", "3,0,32", "3,32,-32", "3,99999999,32", "3"),
    "attention": ("maybe", "2", ""),
    "optimiser": ("sgd", "", "1"),
    "precision": ("float16",),
    "weighting": ("none",),
    "lr_decay": ("linear",),
}


@pytest.mark.parametrize("key", (*WHOLE, *REAL, *FIXED))
def test_every_setting_has_a_range(key: str) -> None:
    """One line that names the setting, and shows of a long value the beginning only."""
    values: tuple[str, ...] = FIXED.get(key, ())
    if key in WHOLE:
        values = ("-1", "1.5", "1e400", "nan", "inf", "99999999999999999999", "9" * 5000, "", "x")
    elif key in REAL:
        values = ("-1", "nan", "inf", "-inf", "1e300", "", "x", "9" * 5000)
    for value in values:
        with pytest.raises(ValueError, match=f"^setting {key}=") as caught:
            presets.preset("tiny").override({key: value})
        text = str(caught.value)
        assert len(text) < 250 and "\n" not in text
        assert "expected" in text or "cannot be read as" in text


def test_what_the_presets_set_is_in_range() -> None:
    for name in presets.PRESETS:
        side = presets.FULL_SIZE[name].side if name in presets.FULL_SIZE else 32
        for system in presets.SYSTEMS:
            config = presets.preset(name, system, (3, side, side))
            assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
            if name not in presets.FULL_SIZE:
                least, own = (
                    memory.least_weights(config.model),
                    presets.parameter_counts(config.model),
                )
                assert 0.2 * sum(own.values()) < least < sum(own.values())


@pytest.mark.parametrize(
    "changes", ({"channels": "65536"}, {"base_channels": "65000,65000"}, {"channels": "30000,9000"})
)
def test_networks_larger_than_the_memory_are_refused(
    changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of it is taken, since the system may end the process without a word."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**34)
    config = presets.preset("tiny").override(changes).model
    with pytest.raises(ValueError, match="GiB of memory, and there are 16: make channels or"):
        presets.build(config)
    with torch.device("meta"):  # takes no memory
        presets.build(config, scales=[])


def test_a_batch_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**33)
    config = presets.preset("small", "vdm").model
    memory.check_training(config, 128)
    with pytest.raises(ValueError, match="batch_size=1000000 takes at least .* batch_size smaller"):
        memory.check_training(config, 1_000_000)
    monkeypatch.setattr(memory, "machine_bytes", lambda: None)  # where it is not known
    memory.check_training(config, 1_000_000)


def test_only_the_scales_that_are_trained_take_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A base that is too large does not keep the details from being trained; a name that no scale
    has is refused as such."""
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**33)
    words = ["train", str(tmp_path / "run"), "--preset", "tiny", "--dataset", "photos"]
    words += ["--steps", "1", "--dry-run", "--set", "base_channels=30000"]
    assert main(words) == 2
    assert "make channels or blocks smaller" in capsys.readouterr().err
    assert main([*words, "--scales", "details1"]) == 0
    assert main([*words, "--scales", "detail"]) == 2
    assert "unknown scales ['detail']" in capsys.readouterr().err


# ---------------------------------------------------------------- headers of checkpoints


def change(file: Path, **keys: Any) -> None:
    """Other values in a JSON file; `...` removes the key."""
    facts = json.loads(file.read_text())
    for key, value in keys.items():
        *above, last = key.split("__")
        place = facts
        for part in above:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    file.write_text(json.dumps(facts))


BROKEN: list[dict[str, Any]] = [
    *({key: ...} for key in ("config", "data", "scales", "step", "seconds", "seed")),
    *({f"config__{key}": ...} for key in ("preset", "system", "model", "training")),
    {"config": None},
    {"config": []},
    {"config__model": 5},
    {"config__model": [1]},
    {"config__model__channels": "wide"},
    {"config__model__channels": [0]},
    {"config__model__channels": 8},
    {"config__model__map": ["wavelet"]},
    {"config__model__map": "fourier"},
    {"config__model__levels": 10**9},
    {"config__model__levels": True},
    {"config__model__attention": "yes"},
    {"config__model__colour": "red"},
    {"config__model__image_shape": [3, 8]},
    {"config__training__batch_size": -1},
    {"config__training__ema": float("nan")},
    {"config__preset": 3},
    {"config__extra": 1},
    {"data": "photos"},
    {"scales": "base"},
    {"scales": ["bass"]},
    {"scales": [["base"]]},
    {"step": "1"},
    {"step": -1},
    {"step": True},
    {"seconds": float("inf")},
    {"seed": 1.5},
]


@pytest.mark.parametrize(
    "keys", BROKEN, ids=lambda keys: ",".join(f"{k}={v}" for k, v in keys.items())
)
def test_a_header_that_lacks_something_names_it(run: Path, keys: dict[str, Any]) -> None:
    """The file, and what of it: by the reader, so that every command says the same."""
    file = run / "checkpoints/step-00000001/config.json"
    change(file, **keys)
    for source in (run, file.parent):
        with pytest.raises(ValueError, match="config.json.*restore the file") as caught:
            pretrained.open_model([source])
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    (key,) = keys
    if keys[key] is ...:
        assert repr(key.rpartition("__")[2]) in str(caught.value)


@pytest.mark.parametrize("text", ("", "[]", "null", "7", '"text"', "{", "\xff", "[" * 100_000))
def test_a_header_that_is_no_header(run: Path, text: str, capsys: pytest.CaptureFixture) -> None:
    file = run / "checkpoints/step-00000001/config.json"
    file.write_bytes(text.encode("latin-1"))
    assert main(["evaluate", str(run), "--dataset", "photos", "--images", "2"]) == 2
    said = capsys.readouterr().err
    assert "config.json" in said and len(said.splitlines()) == 1


def test_a_kept_models_header_is_checked_too(run: Path, tmp_path: Path) -> None:
    cascade, found = pretrained.open_model([run])
    kept.keep(cascade, found, tmp_path / "x.model")
    pretrained.open_model([tmp_path / "x.model"])
    file = tmp_path / "x.model/config.json"
    facts = json.loads(file.read_text())
    del facts["training"][0]["data"]
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="lacks the key 'data'"):
        pretrained.open_model([tmp_path / "x.model"])


def test_a_whole_header_is_given_back(run: Path) -> None:
    newest = checkpoints.newest_checkpoint(run)
    assert newest is not None
    header = headers.read_header(newest)
    assert (header["step"], header["scales"]) == (1, ["base", "details1"])


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "kind", (torch.int32, torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float64)
)
def test_weights_of_another_type_are_refused(
    run: Path, kind: torch.dtype, capsys: pytest.CaptureFixture
) -> None:
    """They are not cast: a conversion changes the model."""
    file = run / "checkpoints/step-00000001/ema.base.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({k: v.to(kind) for k, v in tensors.items()}, file)
    words = ["sample", str(run), "--count", "1", "--steps", "1", "--out", str(run / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"holds {kind} numbers" in said and len(said.splitlines()) == 1
    assert not (run / "out").exists()

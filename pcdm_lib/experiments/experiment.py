"""What the notebooks of `reproduce/` share: parameters checked at the door, one experiment from
data to results file, the closing table."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdm_lib import outputs, records
from pcdm_lib.coding import plain
from pcdm_lib.data import sets
from pcdm_lib.data.images import ImageData, spread
from pcdm_lib.data.paths import data_folder, located
from pcdm_lib.experiments import published, quality
from pcdm_lib.likelihood.evaluation import Evaluation, evaluate
from pcdm_lib.likelihood.three_ways import Comparison
from pcdm_lib.maps.scales import image_shape_of
from pcdm_lib.models import checkpoints, presets, pretrained
from pcdm_lib.models.cascade import Cascade
from pcdm_lib.models.config import Config
from pcdm_lib.models.presets import EVERY_SYSTEM
from pcdm_lib.training import place
from pcdm_lib.training.trainer import Trainer

# 2: further keys (likelihoods, quality, twice, ood), and scores.npz beside results.json
RESULTS_FORMAT = 2


def data_root() -> Path:
    """The data folder, as the shell finds it (`paths.data_folder`)."""
    return data_folder()


def compute_line(seconds: float, steps: int, machine: str) -> str:
    """The compute behind a figure, in one phrase."""
    return f"{steps} steps, {seconds / 60:.1f} min of training on {machine}"


def write_results(
    path: Path | str,
    *,
    config: Config,
    data_label: str,
    data_source: Mapping[str, Any],
    evaluation: Evaluation,
    training: Mapping[str, Any],
    codecs: Mapping[str, tuple[float, float]],
    device: str,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `results.json`: every figure with its data, error, seed, budget, versions, commit and
    machine; returns the record.

    Beside it goes `scores.npz`: `bpd` (images,), what each held-out image takes, for differences
    image by image.
    """
    result = {
        "format": RESULTS_FORMAT,
        "config": config.to_dict(),
        "data": {"label": data_label, **data_source},
        "training": dict(training),
        "evaluation": evaluation.to_dict(),
        "reference_codecs": {k: {"bpd": v[0], "se_images": v[1]} for k, v in codecs.items()},
        "provenance": records.provenance(device),
        **(extra or {}),
    }
    result = records.finite(result)
    scores = io.BytesIO()
    np.savez(scores, bpd=evaluation.per_image)
    records.write_bytes(Path(path).with_name("scores.npz"), scores.getvalue())
    records.write_json(path, result)
    return result


@dataclass
class Experiment:
    """One system on one data set at one budget: what a notebook of `reproduce/` walks through. Made
    by `open_experiment`."""

    config: Config
    images: ImageData
    run_dir: Path
    seed: int
    device: str
    codecs: dict[str, tuple[float, float]] = field(default_factory=dict)
    trainer: Trainer | None = None

    @property
    def name(self) -> str:
        return EVERY_SYSTEM[self.config.system]

    def score_codecs(self) -> dict[str, tuple[float, float]]:
        """Bits per dimension of real files of the held-out images, with standard errors: PNG, WebP,
        JPEG XL."""
        sizes = plain.reference_sizes(self.images.heldout)
        self.codecs = {
            name: plain.file_bits_per_dim(size, self.images.heldout) for name, size in sizes.items()
        }
        return self.codecs

    def train(
        self,
        *,
        minutes: float | None,
        steps: int | None,
        on_log: Callable[[dict[str, Any]], None] | None = None,
    ) -> Trainer:
        """Train to the budget (`steps` where given), continuing the run in `run_dir` where there is
        one."""
        data_facts = self.images.source | {"label": self.images.label}
        self.trainer = Trainer(
            self.config,
            self.images.train,
            self.run_dir,
            data=data_facts,
            seed=self.seed,
            device=self.device,
            resume=True,
        )
        if self.trainer.note:
            print(self.trainer.note)
        if self.trainer.step:
            print(
                f"continuing a run that has had {self.trainer.seconds / 60:.1f} minutes and "
                f"{self.trainer.step} steps; "
                f"remove {self.run_dir} for a fresh one"
            )
        if not steps and minutes is not None and self.trainer.seconds > 63 * minutes + 60:
            raise ValueError(
                f"{self.run_dir} has had {self.trainer.seconds / 60:.1f} minutes of training, "
                f"more than the {minutes:g} asked for: "
                "give a larger budget or another output_dir, so that its figures are not taken "
                "for those of the smaller one"
            )
        self.trainer.run(minutes=None if steps else minutes, steps=steps, on_log=on_log)
        return self.trainer

    def _trained(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("this experiment has no run yet: call its `train` first")
        return self.trainer

    def load(self) -> Cascade:
        """The trained cascade with its EMA weights, in eval mode."""
        return checkpoints.load_cascade(self.run_dir, weights="ema", device=self.device)[0]

    def evaluate(self, cascade: Cascade, repeats: int = 4, times_per_image: int = 4) -> Evaluation:
        """The continuous-time bound on the held-out images."""
        return evaluate(
            cascade,
            self.images.heldout,
            repeats=repeats,
            times_per_image=times_per_image,
            seed=self.seed,
            weights="EMA",
            device=self.device,
            progress=True,
        )

    def sessions(self) -> list[dict[str, Any]]:
        """Commit, machine and versions of each session of training."""
        return records.read_json(self.run_dir / "config.json")["provenance"]

    def compute(self) -> str:
        """The compute behind the figure, in one phrase."""
        machines = " and ".join(sorted({s["machine"] for s in self.sessions()}))
        trainer = self._trained()
        return compute_line(trainer.seconds, trainer.step, machines)

    def quality(self, samples: Tensor, steps: int) -> dict[str, Any]:
        """Sample quality for the results file, printed: the band distance to 1000 training images,
        and FID to all of them or why there is none.

        Training images, since a small held-out set may show other things (`photos` holds out two
        photographs). A model that repeated them would score well: held-out bits per dimension tell.

        Args:
            samples: integer images (N, C, H, W).
            steps: of the sampler.
        """
        samples = samples.to(torch.uint8).cpu()
        reference = self.images.train[torch.from_numpy(spread(len(self.images.train))[:1000])]
        distance = quality.band_distance(samples, reference, seed=self.seed)
        print(distance)
        try:
            fid: dict[str, Any] = quality.fid(samples, self.images.train, self.device).to_dict() | {
                "steps": steps
            }
            print(f"FID {fid['value']:.2f} from {len(samples)} samples")
        # printed and kept: a run is not lost for want of one figure
        except (ImportError, OSError, ValueError, FloatingPointError) as error:
            fid = {"missing": str(error)}
            print(f"no FID: {error}")
        return {"band distance": distance.to_dict() | {"steps": steps}, "FID": fid}

    def paper_row(self, dataset: str = "cifar10") -> dict[str, Any]:
        """The paper's figure for this system and this weighting of the loss, as a row of the
        closing table.

        Args:
            dataset: a key of `published.DATA`.
        """
        figure = published.paper_figure(
            self.config.system,
            dataset,
            published.BPD,
            weighting=self.config.training.weighting,
        )
        updates = None if figure is None else figure.updates
        return {
            "system": f"{self.name}, paper"
            if figure is None
            else f"{figure.title}, paper, {figure.place}",
            "bpd": published.NOT_GIVEN if figure is None else figure.text,
            "standard error": "not given",
            "seed": "not given",
            "compute": "not given" if updates is None else f"{updates:g} million updates",
            "data": published.DATA[dataset],
        }

    def result_row(self, evaluation: Evaluation) -> dict[str, Any]:
        """Ours, with its errors, seed, compute and data."""
        return {
            "system": f"{self.name} here, preset {self.config.preset}",
            "bpd": evaluation.bpd,
            "standard error": f"{evaluation.se_images:.4f} images, {evaluation.se_noise:.4f} noise",
            "seed": self.seed,
            "compute": self.compute(),
            "data": self.images.label,
        }

    def write(
        self, evaluation: Evaluation, extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """`results.json` and `scores.npz` in the run's folder; returns the record."""
        trainer = self._trained()
        training = {
            "steps": trainer.step,
            "seconds": trainer.seconds,
            "budget": trainer.budget,
            "seed": self.seed,
            "sessions": self.sessions(),
        }
        return write_results(
            self.run_dir / "results.json",
            config=self.config,
            data_label=self.images.label,
            data_source=self.images.source | {"name": self.images.name},
            evaluation=evaluation,
            training=training,
            codecs=self.codecs,
            device=self.device,
            extra=extra,
        )


def open_experiment(
    notebook: str,
    system: str,
    *,
    dataset: str,
    preset: str,
    seed: int,
    device: str,
    output_dir: str | None,
    heldout_images: int,
    size: int = 32,
) -> Experiment:
    """Data, configuration and folder of an experiment; prints which data it is.

    Args:
        notebook: its name, for the default folder `runs/<notebook>-<data>-<preset>-seed<seed>`.
        output_dir: another folder; a relative one as `paths.located` has it.
        device: "auto" takes a GPU where there is one.
        heldout_images: score at most the first so many.
        size: side of the images, for data sets that come in several.
    """
    if output_dir:
        _check_output_dir(located(output_dir))
    images = sets.load_data(dataset, root=data_root(), heldout_limit=heldout_images, size=size)
    print("data:", images.label)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    records.check_device(device)
    config = presets.preset(preset, system, image_shape_of(images.train))
    kind = dataset if ":" in dataset else images.name
    folder = (
        notebook if system in notebook or notebook.startswith("cifar") else f"{notebook}-{system}"
    )
    name = f"{folder}-{kind}{'' if size == 32 else size}-{preset}-seed{seed}"
    run_dir = located(output_dir or Path("runs", re.sub(r"[^\w.-]+", "_", name)))
    _check_output_dir(run_dir)
    return Experiment(config, images, run_dir, seed, device)


def _check_output_dir(folder: Path) -> None:
    """Refuse a folder that a notebook would train and write its results in, before the work."""
    place.check_place(folder, resume=True)
    path = folder / "results.json"
    if outputs.check_output(path, force=True).exists():
        record = records.read_json(path)
        if not isinstance(record, dict) or not {"format", "evaluation"} <= {*record}:
            raise FileExistsError(
                f"{path} is there and holds no results of a notebook: give another output_dir"
            )


def likelihood_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Several ways to one model's likelihood as rows of figures, for a table and for a results
    file; bits per dimension."""
    return [
        {
            "name": way.name,
            "bpd": way.result.bpd,
            "se_images": way.result.se_images,
            "se_noise": way.result.se_noise,
            "minus_continuous": way.difference,
            "minus_se": way.se_difference,
            "evaluations": way.evaluations,
            "images": len(way.result.parts),
            "settings": str(getattr(way.result, "settings", "")),
        }
        for way in comparison.ways
    ]


def open_models(
    runs: str | None, images: ImageData, device: str = "cpu", *, shipped: bool = False
) -> dict[str, tuple[Cascade, Path | None]]:
    """Trained models for these images by name, each with the folder of its run (None for a shipped
    model).

    Args:
        runs: a folder under which runs with a results.json are looked for, those trained on the
            bound of the same training images; or None for the models that come with the package and
            were trained on them.
        shipped: add those that come with the package to the runs, too.

    Raises:
        ValueError: where there is none.
    """
    wanted = images.source["train_sha256"]
    found: dict[str, tuple[Cascade, Path | None]] = {}
    if runs is not None:
        for path in sorted(located(runs).rglob("results.json")):
            record = records.read_json(path)
            if not isinstance(record, dict) or record.get("format") != RESULTS_FORMAT:
                raise ValueError(
                    f"{path} is no results file of format {RESULTS_FORMAT}: run its notebook "
                    f"again, or give another folder"
                )
            if (
                record["data"].get("train_sha256") == wanted
                and record["config"]["training"].get("weighting", "likelihood") == "likelihood"
            ):
                name = EVERY_SYSTEM[record["config"]["system"]]
                name = name if name not in found else f"{name} ({path.parent.name})"
                found[name] = (checkpoints.load_cascade(path.parent, device=device)[0], path.parent)
    if runs is None or (shipped and found):
        for name in pretrained.names():
            if pretrained.card(name)["data"]["train_sha256"] == wanted:
                found[name] = (pretrained.load_pretrained(name, device), None)
    if not found:
        raise ValueError(
            f"no model trained on {images.label} "
            + (
                "comes with the package: give runs=FOLDER"
                if runs is None
                else f"lies under {runs}: train one there first (reproduce/cifar_wavelet.ipynb, "
                f"make tables)"
            )
        )
    return found


def add_result(run_dir: Path | str, key: str, value: Any) -> None:
    """Add one key to a run's `results.json`, in place of an older value; ValueError for a file of
    another version."""
    path = Path(run_dir) / "results.json"
    record = records.read_json(path)
    if record.get("format") != RESULTS_FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')}, this version writes {RESULTS_FORMAT}: run "
            f"its notebook again first"
        )
    records.write_json(path, records.finite(record | {key: value}))


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as a Markdown table; floats with four digits after the point."""
    if not rows:
        raise ValueError("a table needs at least one row")
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = [f"{row[k]:.4f}" if isinstance(row[k], float) else str(row[k]) for k in head]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

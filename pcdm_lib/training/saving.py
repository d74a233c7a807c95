"""The checkpoints of a run: opening its folder, writing the state, reading it back."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pcdm_lib import outputs, records
from pcdm_lib.models import checkpoints
from pcdm_lib.models.checkpoints import CheckpointMismatch
from pcdm_lib.models.config import config_differences, modern_names
from pcdm_lib.training import distributed, place
from pcdm_lib.training.state import RunState, ScaleTrainer

# what a resumed run must have learned from; the rest of `data` is a record
_IDENTIFYING = ("train_sha256", "train_count")


class Saving(RunState):
    """The part of `Trainer` that writes and reads checkpoints."""

    def _open(self, resume: bool) -> tuple[Path | None, str]:
        """The checkpoint to continue from, if any, and what to say of a start that was left here;
        a new run's folder gets its config.json."""
        newest = place.check_place(self.run_dir, resume)
        if newest is not None:
            self._check_identity(records.read_json(newest / "config.json"), newest)
            return newest, ""
        return None, place.begin(
            self.run_dir, self.header, lambda found: resume and not self._differences(found)
        )

    def save(self) -> Path:
        """Write a checkpoint of this step; it appears whole or not at all. The newest two are kept.
        All processes call this together.

        Returns:
            The checkpoint's folder.

        Raises:
            TrainingDiverged: where weights are not finite.
        """
        path = self.run_dir / "checkpoints" / f"step-{self.step:08d}"
        if distributed.from_first(path.exists):
            return path
        with self._checkpoint_folder(path) as folder:
            for scale in self.scales:
                self._write_scale(scale, folder)
            distributed.total([0.0])  # all scales are written
            if distributed.rank() == 0:
                records.write_json(
                    folder / "config.json",
                    self.header | {"step": self.step, "seconds": self.seconds},
                )
                parts = {name: folder / f"state.{name}.pt" for name in self.header["scales"]}
                state = {
                    name: torch.load(part, map_location="cpu", weights_only=True)
                    for name, part in parts.items()
                }
                if self.shared is not None:
                    state["shared schedule"] = self.shared.optimiser.state_dict()
                _write_state(folder / "state.pt", state)
                for part in parts.values():
                    part.unlink()
        if distributed.rank() == 0:
            for old in checkpoints.list_checkpoints(self.run_dir)[:-2]:
                outputs.remove_folder(old, checkpoints.FILES)
        return path

    @contextlib.contextmanager
    def _checkpoint_folder(self, path: Path) -> Iterator[Path]:
        """The folder that process 0 makes and names; the leaders of other groups write into it too,
        on the same or a shared disk."""
        with contextlib.ExitStack() as stack:
            folder = Path(
                distributed.from_first(lambda: str(stack.enter_context(outputs.whole_folder(path))))
            )
            yield folder

    def _write_scale(self, scale: ScaleTrainer, folder: Path) -> None:
        """One scale's files, by its group's leader; the others of the group hand over their shards
        and dropout streams."""
        for kind, module in (("raw", scale.module), ("ema", scale.ema)):
            tensors = {
                k: self._sharding.whole(v) if self.shard else v.detach().cpu().contiguous()
                for k, v in module.state_dict().items()
            }
            broken = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
            if broken:
                self.torn = True
                raise self._diverged(
                    f"step {self.step}, scale {scale.name}: the weights are not finite, in "
                    f"{broken[0]}",
                    "The last checkpoint is kept in",
                )
            if scale.group.leads:
                records.write_tensors(folder / f"{kind}.{scale.name}.safetensors", tensors)
        optimiser = (
            self._sharding.optimiser_state(scale.optimiser)
            if self.shard
            else scale.optimiser.state_dict()
        )
        dropout = torch.stack(scale.group.everywhere(scale.dropout_state))
        if scale.group.leads:
            _write_state(
                folder / f"state.{scale.name}.pt",
                {"optimiser": optimiser, "streams": scale.streams() | {"dropout": dropout}},
            )

    @staticmethod
    def _identity(header: Mapping[str, Any]) -> dict[str, Any]:
        """What two sessions of a run must have in common."""
        data = header.get("data") or {}
        known = ("format", "config", "seed", "scales", "shown")
        found = {k: header.get(k) for k in known} | {"data": {k: data.get(k) for k in _IDENTIFYING}}
        if found["config"] is not None:
            found["config"] = modern_names(found["config"])
        return found

    def _differences(self, found: Mapping[str, Any]) -> list[str]:
        """What this run and one with that header do not have in common, a line each."""
        own = json.loads(json.dumps(self.header))
        return config_differences(self._identity(own), self._identity(found))

    def _check_identity(self, found: Mapping[str, Any], where: Path) -> None:
        lines = self._differences(found)
        if lines:
            raise CheckpointMismatch(
                f"{where} belongs to another run; give its settings or another folder:\n  "
                + "\n  ".join(lines)
            )

    def _load(self, path: Path) -> None:
        """Optimisers, random streams and place of a checkpoint whose weights are loaded."""
        header = records.read_json(path / "config.json")
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path / 'state.pt'} cannot be read "
                f"({str(error).splitlines()[0] if str(error) else 'empty'}): it was cut short. "
                f"Remove {path} to continue from the checkpoint before it"
            ) from error
        self.step, self.seconds = int(header["step"]), float(header["seconds"])
        for scale in self.scales:
            if self.shard:
                self._sharding.load_optimiser_state(scale.optimiser, state[scale.name]["optimiser"])
            else:
                scale.optimiser.load_state_dict(state[scale.name]["optimiser"])
            streams = state[scale.name]["streams"]
            # one row a process, or the vector of one
            dropout = streams["dropout"].reshape(-1, streams["dropout"].shape[-1])
            place = scale.group.place
            own = (
                dropout[place].clone()
                if place < len(dropout)
                else self._fresh_dropout(scale.index, place)
            )
            scale.load_streams(streams | {"dropout": own})
        if self.shared is not None:
            self.shared.optimiser.load_state_dict(state["shared schedule"])


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    """What `torch.load` reads. It is put together in memory first: torch's own writer hides the
    error of a full disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with outputs.whole_file(path) as file:
        file.write(buffer.getbuffer())

"""The checkpoints of a run: opening its folder, writing the state, reading it back."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pcdm_lib import records
from pcdm_lib.models.checkpoints import CheckpointMismatch, list_checkpoints, newest_checkpoint
from pcdm_lib.models.config import config_differences, modern_names
from pcdm_lib.training import distributed
from pcdm_lib.training.state import RunState, ScaleTrainer

# what a resumed run must have learned from; the rest of `data` is a record
_IDENTIFYING = ("train_sha256", "train_count")


class Saving(RunState):
    """The part of `Trainer` that writes and reads checkpoints."""

    def _open(self, resume: bool) -> Path | None:
        """The checkpoint to continue from, if any; a new run's folder gets its config.json."""
        newest = newest_checkpoint(self.run_dir)
        if newest is not None and resume:
            self._check_identity(records.read_json(newest / "config.json"), newest)
            return newest
        if newest is not None or (self.run_dir / "config.json").exists():
            if not resume:
                raise FileExistsError(
                    f"{self.run_dir} holds a run already: resume it, or give another folder"
                )
            self._check_identity(records.read_json(self.run_dir / "config.json"), self.run_dir)
        else:
            records.write_json(self.run_dir / "config.json", self.header | {"provenance": []})
        return None

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
                (folder / "config.json").write_text(
                    json.dumps(self.header | {"step": self.step, "seconds": self.seconds}, indent=2)
                )
                parts = {name: folder / f"state.{name}.pt" for name in self.header["scales"]}
                state = {
                    name: torch.load(part, map_location="cpu", weights_only=True)
                    for name, part in parts.items()
                }
                if self.shared is not None:
                    state["shared schedule"] = self.shared.optimiser.state_dict()
                torch.save(state, folder / "state.pt")
                for part in parts.values():
                    part.unlink()
        if distributed.rank() == 0:
            for old in list_checkpoints(self.run_dir)[:-2]:
                shutil.rmtree(old, ignore_errors=True)
        return path

    @contextlib.contextmanager
    def _checkpoint_folder(self, path: Path) -> Iterator[Path]:
        """The folder that process 0 makes and names; the leaders of other groups write into it too,
        on the same or a shared disk."""
        with contextlib.ExitStack() as stack:
            folder = Path(
                distributed.from_first(lambda: str(stack.enter_context(records.new_folder(path))))
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
                safetensors.torch.save_file(tensors, folder / f"{kind}.{scale.name}.safetensors")
        optimiser = (
            self._sharding.optimiser_state(scale.optimiser)
            if self.shard
            else scale.optimiser.state_dict()
        )
        dropout = torch.stack(scale.group.everywhere(scale.dropout_state))
        if scale.group.leads:
            torch.save(
                {"optimiser": optimiser, "streams": scale.streams() | {"dropout": dropout}},
                folder / f"state.{scale.name}.pt",
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

    def _check_identity(self, found: Mapping[str, Any], where: Path) -> None:
        lines = config_differences(
            self._identity(json.loads(json.dumps(self.header))), self._identity(found)
        )
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

"""The log of a run: a line every few steps, and cut to the checkpoint when a run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pcdm_lib import outputs, records
from pcdm_lib.models.checkpoints import read_log
from pcdm_lib.training import distributed
from pcdm_lib.training.state import RunState


class Log(RunState):
    """The part of `Trainer` that writes log.jsonl."""

    def _record(self, totals: Mapping[str, list[float | Tensor]]) -> dict[str, Any]:
        names = self.header["scales"]
        groups = {scale.name: scale.group.size for scale in self.scales}
        own = [
            float(sum(totals[name]) / len(totals[name])) / groups[name] if name in groups else 0.0
            for name in names
        ]
        means = dict(zip(names, distributed.total(own)))
        # where steps are waited for they have said so themselves
        if not all(map(math.isfinite, means.values())):
            self.torn = True
            raise self._diverged(
                f"one of the last steps before {self.step}: loss or gradient is not finite, mean "
                f"losses {means}",
                "The last checkpoint is kept in",
            )
        record = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "images": self.step * self.config.training.batch_size,
            "rate": self.rate,
            "bpd": sum(means.values()),
            "scales": means,
        }
        if self.config.training.weighting != "likelihood":
            # then `bpd` and `scales` are no bits
            record["weighting"] = self.config.training.weighting
        if distributed.rank() == 0:
            outputs.append_line(self.run_dir / "log.jsonl", json.dumps(record))
        return record

    def _trim_log(self) -> None:
        """Drop lines after the checkpoint, and one that a kill cut short: the resumed run writes
        them again."""
        path = self.run_dir / "log.jsonl"
        if path.exists():
            kept = [r for r in read_log(self.run_dir) if r["step"] <= self.step]
            records.write_bytes(path, "".join(json.dumps(r) + "\n" for r in kept).encode())

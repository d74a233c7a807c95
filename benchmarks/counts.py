"""Parameters of the full-size presets, which reading of Appendix B's figures comes closest, and the
operations of the CIFAR-10 budget.

    python -m benchmarks.counts

Appendix B gives two numbers of parameters for each data set, "respectively", and it is not clear of
what. A reading is a layout (which networks) and a pair (which two numbers). All of them are
counted, without building a network in memory. The tables stand in docs/training.md.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pcdm_lib.experiments.experiment import markdown_table
from pcdm_lib.models import presets
from pcdm_lib.models.presets import PaperSetting

Pair = tuple[int, int]
SUSTAINED = 1e14  # operations a second


@functools.cache
def network(system: str, base: bool, width: int, blocks: int) -> int:
    """Trained numbers of one network: the base's, or that of a finer scale."""
    config = presets.preset("paper-cifar10", system).override(
        {"channels": width, "blocks": blocks, "base_channels": "", "base_blocks": 0}
    )
    counts = list(presets.parameter_counts(config.model).values())
    return counts[0 if base else -1]


def base(setting: PaperSetting) -> int:
    """The coarsest scale's network: the same for all systems, and VDM's only one."""
    return network("vdm", True, setting.base_channels, setting.base_blocks)


def finer(setting: PaperSetting, system: str) -> int:
    """The network of one of the finer scales. Coordinates of one kind give networks of one size,
    whatever the side."""
    return network(system, False, setting.channels, setting.blocks)


def cascade(setting: PaperSetting, system: str) -> int:
    """All networks of a cascade."""
    return base(setting) + (setting.scales - 1) * finer(setting, system)


def _halved(setting: PaperSetting) -> PaperSetting:
    return dataclasses.replace(
        setting, base_blocks=setting.base_blocks // 2, blocks=setting.blocks // 2
    )


def _shallow_finer(setting: PaperSetting) -> PaperSetting:
    return dataclasses.replace(setting, blocks=setting.blocks // 2)


def _wide(setting: PaperSetting) -> PaperSetting:
    return dataclasses.replace(setting, channels=setting.base_channels)


def _one_more(setting: PaperSetting) -> PaperSetting:
    return dataclasses.replace(setting, scales=setting.scales + 1)


# N is the depth: 32 or 64
LAYOUTS: dict[str, Callable[[PaperSetting], PaperSetting]] = {
    "N blocks each way": lambda s: s,
    "N blocks in all": _halved,
    "finer scales N / 2 each way": _shallow_finer,
    "base N in all, finer N / 2 in all": lambda s: _shallow_finer(_halved(s)),
    "all as wide as the base": _wide,
}
PAIRS: dict[str, Callable[[PaperSetting], Pair]] = {
    "base network; finer network": lambda s: (base(s), finer(s, "wavelet")),
    "base network; whole cascade": lambda s: (base(s), cascade(s, "wavelet")),
    "LP-PCDM; W-PCDM": lambda s: (cascade(s, "laplacian"), cascade(s, "wavelet")),
    "cascade of S; of S + 1 scales": lambda s: (
        cascade(s, "wavelet"),
        cascade(_one_more(s), "wavelet"),
    ),
}


def off(ours: Pair, stated: tuple[int, ...]) -> float:
    """The larger of the two relative differences from the stated millions."""
    return max(abs(a / (1e6 * b) - 1) for a, b in zip(ours, stated, strict=True))


def counted() -> list[dict[str, Any]]:
    """Millions of parameters of every full-size preset, by network and in all, as table rows."""
    return [
        {
            "preset": f"`{name}`",
            "base; VDM": _millions(base(s)),
            "a finer scale: W-PCDM": _millions(finer(s, "wavelet")),
            "a finer scale: LP-PCDM, C-VDM": _millions(finer(s, "laplacian")),
            "scales": s.scales,
            "all: W-PCDM": _millions(cascade(s, "wavelet")),
            "all: LP-PCDM, C-VDM": _millions(cascade(s, "laplacian")),
            "Appendix B": " and ".join(map(str, s.stated)),
        }
        for name, s in presets.FULL_SIZE.items()
    ]


def readings() -> list[dict[str, str]]:
    """Every reading of Appendix B's figures, as table rows: our two counts in millions and the
    larger relative difference; the closest of each data set in bold type."""
    found = {
        (layout, pair): {
            name: two(change(s)) for name, s in presets.PAPER_SETTINGS.items() if s.stated
        }
        for layout, change in LAYOUTS.items()
        for pair, two in PAIRS.items()
    }
    stated = {name: s.stated for name, s in presets.PAPER_SETTINGS.items()}
    best = {
        name: min(found, key=lambda reading, name=name: off(found[reading][name], stated[name]))
        for name in stated
    }
    rows = []
    for (layout, pair), counts in found.items():
        row = {"networks": layout, "the two numbers": pair}
        for name, two in counts.items():
            text = f"{two[0] / 1e6:.1f}; {two[1] / 1e6:.1f} ({100 * off(two, stated[name]):.1f} %)"
            title = f"{name.removeprefix('paper-')}: {stated[name][0]}; {stated[name][1]}"
            row[title] = f"**{text}**" if best[name] == (layout, pair) else text
        rows.append(row)
    return rows


def operations(name: str, system: str) -> int:
    """Operations for one image, forward and backward through the networks of all scales. Nothing is
    computed: the tensors have no memory."""
    side = presets.FULL_SIZE[name].side
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        cascade = presets.build(presets.preset(name, system, (3, side, side)).model)
        for scale in cascade.scales:
            net = scale.denoiser.net
            seen = torch.empty(1, net.entry.in_channels, *scale.spec.view_shape[1:])
            net(seen, torch.empty(1)).sum().backward()
    return int(counter.get_total_flops())


def budgets(name: str = "paper-cifar10") -> list[dict[str, str]]:
    """What the updates of a preset take, as table rows: operations, and days at SUSTAINED."""
    training, rows = presets.preset(name).training, []
    for system, label in presets.SYSTEMS.items():
        image = operations(name, system)
        total = image * training.batch_size * presets.FULL_SIZE[name].updates
        rows.append(
            {
                "": f"{label} ({system})",
                "GFLOP an image": f"{image / 1e9:.0f}",
                "EFLOP in all": f"{total / 1e18:.0f}",
                "days at 100 TFLOP/s": f"{total / SUSTAINED / 86400:.1f}",
            }
        )
    return rows


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}"


def main() -> int:
    """Print the tables."""
    print("Parameters, millions\n")
    print(markdown_table(counted()))
    print("\nReadings: our two counts in millions (the larger difference from Appendix B's)\n")
    print(markdown_table(readings()))
    print("\nOperations of paper-cifar10's updates, forward and backward\n")
    print(markdown_table(budgets()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`pcdm card` and `pcdm ship`: models that come with the package."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pcdm_lib.commands.options import (
    OUTPUT,
    DataRoot,
    Dataset,
    Device,
    Force,
    Images,
    Quiet,
    Repeats,
    Runs,
    Seed,
    Size,
    Times,
    examples,
    model_names,
    sources,
)


@examples("pcdm card", "pcdm card photos32-wavelet")
def card(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A shipped model; without it, their names are listed.", autocompletion=model_names
        ),
    ] = None,
) -> int:
    """Show what is known of a shipped model, as Markdown."""
    from pcdm_lib.models import pretrained

    if name is None:
        print("\n".join(pretrained.names()))
    else:
        print(pretrained.markdown(pretrained.card(name)))
    return 0


@examples(
    "pcdm ship runs/a my-model --dataset photos",
    "pcdm ship runs/base runs/details my-model --dataset cifar10 --images 600",
)
def ship(
    runs: Runs,
    name: Annotated[
        str,
        typer.Argument(help="What load_pretrained will call it."),
    ],
    dataset: Dataset = "auto",
    size: Size = None,
    data_root: DataRoot = None,
    images: Images = None,
    repeats: Repeats = 4,
    times: Times = 4,
    weights_root: Annotated[
        Path | None,
        typer.Option(help="Folder of models. Default: the package's.", rich_help_panel=OUTPUT),
    ] = None,
    licence: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="What the card says of the images' licence. Default: what is known of the data "
            "set.",
            rich_help_panel=OUTPUT,
        ),
    ] = "",
    device: Device = "auto",
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
) -> int:
    """Make a trained run a model that comes with the package."""
    from pcdm_lib import records
    from pcdm_lib.data import sets
    from pcdm_lib.experiments import shipping
    from pcdm_lib.models import pretrained

    where = records.find_device(device)
    root = weights_root or pretrained.WEIGHTS
    shipping.check_place(root, name, force)
    data = sets.load_data(dataset, root=data_root, size=size)
    print(f"data: {data.label}", flush=True)
    checks = {dataset if data.of_a_path else data.name: data}
    # figures that can be checked where that data set is not there
    if data.name != "photos" and data.train.shape[1] == 3:
        checks["photos"] = sets.load_data("photos", size=data.train.shape[-1])
    folders = [Path(run) for run in sources(runs)]
    words = ["python", "-m", "pcdm_lib", "ship"]
    words += [*(f"runs/{folder.resolve().name}" for folder in folders), name]
    words += ["--dataset", dataset, *(["--images", str(images)] if images else [])]
    words += ["--repeats", str(repeats), "--times", str(times), "--seed", str(seed)]
    facts = shipping.ship(
        folders,
        name,
        data,
        checks=checks,
        count=images,
        repeats=repeats,
        times_per_image=times,
        seed=seed,
        command=shlex.join(words),
        licence=licence,
        device=str(where),
        root=root,
        progress=not quiet,
        force=force,
    )
    print(pretrained.markdown(facts))
    return 0

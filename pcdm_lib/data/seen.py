"""Whether a model may have been trained on the images that it is about to be scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pcdm_lib.data import domains
from pcdm_lib.data.images import ImageData


def check_unseen(
    trained_on: Mapping[str, Any], image_shape: Sequence[int], images: ImageData
) -> str | None:
    """A warning where the model has seen the held-out images, else None.

    Args:
        trained_on: what a run's header says of its data.
        image_shape: (C, H, W) that the model takes. Images of another shape are refused when they
            are scored, not here.
    Raises:
        ValueError: where the folder that the model was trained on has changed since. New files move
            the split, so held-out images may have been trained on.
    """
    same_folder = (
        tuple(image_shape) == tuple(images.train.shape[1:])
        and images.of_a_path
        and trained_on.get("folder") == images.source["folder"]
    )
    if same_folder and trained_on.get("train_sha256") != images.source["train_sha256"]:
        raise ValueError(
            f"{images.source['folder']} has changed since training, so held-out images may have "
            f"been trained on: train anew, or score another folder"
        )
    if images.name == "histology" and str(trained_on.get("label", "")).startswith("photos"):
        return (
            f"this model has seen the slide, held-out rows included: {domains.SLIDE}, reduced, is "
            f"one of the photographs it was trained on"
        )
    return None

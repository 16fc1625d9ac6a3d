"""`deepcluster filters`: what a backbone's channels respond to, as the paper's figures show it.

Shapes: N images, L channels of a layer, K of those shown, M images a channel.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepcluster import completion

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from deepcluster.artifacts import Store
    from deepcluster.checkpoint import Checkpoint

MOST_CHANNELS, MOST_STEPS, IMAGES = 64, 10_000, 9

Epoch = Annotated[
    int | None,
    typer.Option(
        "--epoch",
        "-e",
        help="Whose backbone; 0 is the untrained one.  [default: the last]",
        show_default=False,
        autocompletion=completion.epochs_and_untrained,
    ),
]
Layer = Annotated[
    str | None,
    typer.Option("--layer", help="A layer's name, as in the checkpoint.  [default: the last]", show_default=False),
]


def filters(
    epoch: Epoch = None,
    layer: Layer = None,
    channels: Annotated[int, typer.Option("--channels", help="How many, evenly spaced; at most 64.")] = 8,
    steps: Annotated[int, typer.Option("--steps", help="Of gradient ascent; at most 10,000.")] = 200,
) -> None:
    """Draw first-layer filters, and what excites the channels of a layer: made images and those of the data set.

    Reads data/dataset/images.zarr and data/epochs/E/checkpoint; changes no artifact. Writes data/filters/E:
    first-layer.png; LAYER.png, a row a channel: the image that gradient ascent makes from noise, then the nine images
    with the largest response; LAYER.csv, their names. Same backbone, same pictures.
    """
    from deepcluster import artifacts, layout
    from deepcluster.activations import first_filters
    from deepcluster.checkpoint import load_checkpoint
    from deepcluster.errors import UserError
    from deepcluster.inspection.filters import filter_pictures
    from deepcluster.inspection.gallery import sheet_png
    from deepcluster.params import load_params

    params = load_params()
    epoch = params.epochs if epoch is None else epoch
    if epoch < 0:
        raise UserError(f"--epoch: must be >= 0; got {epoch}")
    for option, value, most in (("--channels", channels, MOST_CHANNELS), ("--steps", steps, MOST_STEPS)):
        if not 1 <= value <= most:
            raise UserError(f"{option}: must be from 1 to {most:,}; got {value}")
    images = artifacts.open_store(layout.IMAGES, "images", made_by="prepare")
    made_by = layout.made_by_checkpoint(epoch)
    found = load_checkpoint(layout.checkpoint(epoch), made_by=made_by, ids=images.ids, epoch=epoch)
    name = _known(found, layer)
    folder = layout.filters(epoch)
    description = found.description
    weights = first_filters(found.backbone, channels=description.body_channels, size=description.image_size)
    _write(folder / "first-layer.png", sheet_png(filter_pictures(weights), first_gap=None))
    made, picked, chosen = _excitement(found, images, name, channels, steps, params.seed, epoch)
    _write(folder / f"{name}.png", _sheet(made, picked, images))
    artifacts.write_text(folder / f"{name}.csv", _csv(chosen, picked, images.strings("sample_ids")))
    print(f"{folder / 'first-layer.png'}: {len(weights)} filters")
    print(f"{folder / name}.png: channels {', '.join(map(str, chosen))}")


def _known(found: "Checkpoint", layer: str | None) -> str:
    from deepcluster.activations import layers
    from deepcluster.errors import UserError, nearest

    known = list(layers(found.backbone))
    if layer is not None and layer not in known:
        raise UserError(f"--layer: must be one of {', '.join(known)}; got {layer!r}{nearest(layer, known)}")
    return layer or known[-1]


def _excitement(
    found: "Checkpoint", images: "Store", layer: str, count: int, steps: int, seed: int, epoch: int
) -> "tuple[NDArray[np.uint8], NDArray[np.int64], list[int]]":
    """Made images [K, C, S, S], the numbers [K, M] of those that excite most, largest first, and the channels [K]."""
    import numpy as np

    from deepcluster.activations import exciting_images, responses
    from deepcluster.images import open_rows
    from deepcluster.inspection.page import chosen
    from deepcluster.progress import counted
    from deepcluster.seeding import torch_generator
    from stages.common import device

    pixels_NCSS = open_rows(images)
    scale: dict[str, Any] = {"mean": images.attributes["mean"], "std": images.attributes["std"], "device": device()}
    passed = responses(found.backbone, layer, pixels_NCSS, batch_size=256, **scale)
    response_NL = np.concatenate(list(counted(passed, "responses", len(pixels_NCSS), "images")))
    channels = chosen(range(response_NL.shape[1]), count)
    order_KN = np.argsort(-response_NL[:, channels].T, axis=1, kind="stable")
    settings: dict[str, Any] = {
        "shape": pixels_NCSS.shape[1:],
        "steps": steps,
        "generator": torch_generator(seed, "gallery", epoch),
    }
    made = exciting_images(found.backbone, layer, channels, **settings, **scale)
    for picture_KCSS in counted(made, "gradient ascent", steps, "steps", size=lambda _: 1):
        last_KCSS = picture_KCSS
    return last_KCSS, order_KN[:, :IMAGES], channels


def _sheet(made_KCSS: "NDArray[np.uint8]", picked_KM: "NDArray[np.int64]", images: "Store") -> bytes:
    from deepcluster.images import open_rows
    from deepcluster.inspection.filters import excitement_pictures
    from deepcluster.inspection.gallery import sheet_png

    return sheet_png(excitement_pictures(made_KCSS, open_rows(images)[picked_KM]))


def _csv(channels: list[int], picked_KM: "NDArray[np.int64]", sample_ids: list[str]) -> str:
    from deepcluster.spreadsheets import csv_line, harmless

    rows = [
        [channel, rank, harmless(sample_ids[int(number)])]
        for channel, picked_M in zip(channels, picked_KM, strict=True)
        for rank, number in enumerate(picked_M, start=1)
    ]
    return csv_line(["channel", "rank", "sample"]) + "".join(map(csv_line, rows))


def _write(path: "Path", content: bytes) -> None:
    from deepcluster import artifacts

    with artifacts.publishing(path) as partial:
        partial.write_bytes(content)

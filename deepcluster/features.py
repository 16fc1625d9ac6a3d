"""Images to features: one pass of the backbone in eval mode, in data set order.

Shapes: N images, B images of a batch, C channels, H height, W width, D features.
"""

from collections.abc import Generator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcluster.errors import NumericsError
from deepcluster.models.build import Backbone, Precision, autocast, compiled
from deepcluster.pixels import normalise, to_float
from deepcluster.progress import counted
from deepcluster.threads import ahead
from deepcluster.transfer import Arriving, sent, staging

ROWS_NAMED = 5


class ImageRows(Protocol):
    """uint8 images [N, C, H, W] read by slices of rows: a numpy array, or an array on disk that slices alike."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def extract_features(
    backbone: Backbone,
    images: ImageRows,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    precision: Precision = "fp32",
    compile: bool = False,
    first: int = 0,
    last: int | None = None,
) -> Generator[NDArray[np.float32]]:
    """Yields float32 features [B, D], row i of all of them together being image `first` + i's; to the end, or `last`.

    Images travel to the device as uint8 and are normalised there by mean and std (units of [0, 1]). NumericsError names
    the rows whose features are NaN or infinite. A batch is yielded once the next one is under way, so what the caller
    does with it (writing it to disk) does not keep a GPU waiting. `compile`: see `models.build.compiled`. Every image
    is in the same batch whatever `first` and `last` are, since its features' last bits depend on that.
    """
    backbone.to(device).to(memory_format=torch.channels_last).eval()
    forward = compiled(backbone, compile)
    count = images.shape[0]
    stop = count if last is None else last
    before: tuple[int, int, Arriving] | None = None

    def collect(start: int) -> tuple[int, int, Tensor]:
        rows_BCHW = images[start : min(start + batch_size, count)]
        batch = staging((min(batch_size, count), *images.shape[1:]), torch.uint8, device)
        filled = batch.numpy()
        filled[: len(rows_BCHW)] = rows_BCHW
        filled[len(rows_BCHW) :] = rows_BCHW[-1:]  # kernels, and so rounding, do not depend on N
        return start, len(rows_BCHW), batch

    for start, rows, batch in ahead(map(collect, range(first // batch_size * batch_size, stop, batch_size))):
        # entered for each batch, so that the caller's code between two batches does not run in inference mode
        with torch.inference_mode(), autocast(device, precision):
            inputs = normalise(to_float(sent(batch, device)), mean, std).contiguous(memory_format=torch.channels_last)
            features_BD = Arriving(forward(inputs).float())
        if before is not None:
            yield _arrived(*before)[max(0, first - before[0]) : stop - before[0]]
        before = start, rows, features_BD
    if before is not None:
        yield _arrived(*before)[max(0, first - before[0]) : stop - before[0]]


def all_features(
    backbone: Backbone,
    images: ImageRows,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
    label: str = "",
) -> NDArray[np.float32]:
    """What `extract_features` yields in float32, in one array [N, D]; its progress is shown under `label`, if any."""
    blocks = extract_features(backbone, images, batch_size=batch_size, mean=mean, std=std, device=device)
    count = images.shape[0]
    return np.concatenate(list(counted(blocks, label, count, "images") if label else blocks))


def _arrived(start: int, rows: int, features_BD: Arriving) -> NDArray[np.float32]:
    """The features of `rows` images from `start` on, without what filled the batch up."""
    found_BD: NDArray[np.float32] = features_BD.get().numpy()[:rows]
    _check_finite(found_BD, start)
    return found_BD


def _check_finite(features_BD: NDArray[np.float32], start: int) -> None:
    if np.isfinite(features_BD).all():
        return
    rows = (np.flatnonzero(~np.isfinite(features_BD).all(axis=1)) + start).tolist()
    named = ", ".join(str(row) for row in rows[:ROWS_NAMED]) + (", ..." if len(rows) > ROWS_NAMED else "")
    raise NumericsError(
        f"features of {len(rows)} images in one batch are NaN or infinite (rows {named}): "
        "the training before them diverged; lower train.optimizer.lr and train again"
    )

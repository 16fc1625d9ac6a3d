"""What rows of features, images, cluster sizes and weights look like, in one pass over blocks where there are many.

Shapes: N rows, D features, B rows of a block, C channels, H and W pixels, K clusters.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from deepcluster.clustering.health import effective_rank
from deepcluster.memory import too_large
from deepcluster.metrics import cluster_statistics
from deepcluster.reduction.moments import WIDE, moments

RANK_ROWS = 65_536  # evenly spaced, at most, for the effective rank: a D x D product a row
FLOAT32_ROUNDING = 1e-6  # of the largest variance, which `moments` of wide rows costs: smaller ones are noise
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # batch norm's state, not weights


@dataclass(frozen=True)
class RowStatistics:
    """Of features [N, D]. Rows with NaN or infinity are counted, and left out of everything else.

    norms: Euclidean, of each row: min, median, mean, max (None without a finite row). zeros: share of values that are
    0. dead: dimensions that are 0 in every row; constant: those with one other value in every row. effective_rank: of
    `rank_rows` evenly spaced rows (Roy and Vetterli 2007), None below two rows or where D x D does not fit into memory.
    """

    rows: int
    nan: int
    infinite: int
    bad_rows: int
    norms: Mapping[str, float] | None
    mean: float | None
    deviation: float | None
    zeros: float | None
    dead: list[int]
    constant: list[int]
    effective_rank: float | None
    rank_rows: int


def row_statistics(
    blocks: Iterable[NDArray[np.floating]], shape: tuple[int, ...], *, rank_rows: int = RANK_ROWS
) -> RowStatistics:
    """Of float rows in blocks [B, D] that together have `shape` [N, D]; reads each block once."""
    total, width = shape
    tally = _Tally(width, step=max(1, -(-total // rank_rows)))
    if width and too_large(3 * 8.0 * width * width) is None:
        rank = _rank(tally.sampled(blocks))
    else:
        rank = None
        for _ in tally.sampled(blocks):
            pass
    return tally.result(rank)


@dataclass
class _Tally:
    """Everything but the rank, counted while blocks pass through; every `step`-th row goes on to the rank."""

    width: int
    step: int
    rows: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    sampled_rows: int = 0
    shift: float = 0.0  # near the mean, so that squares lose no digits
    sum: float = 0.0
    squares: float = 0.0
    norms: list[NDArray[np.float64]] = field(default_factory=list)
    lowest_D: NDArray[np.float64] | None = None
    highest_D: NDArray[np.float64] | None = None

    def sampled(self, blocks: Iterable[NDArray[np.floating]]) -> Iterator[NDArray[np.float32]]:
        for block_BD in blocks:
            kept_BD = block_BD[-self.rows % self.step :: self.step]
            finite_BD = self._add(block_BD)
            if len(finite_BD) < len(block_BD):
                kept_BD = kept_BD[np.isfinite(kept_BD).all(axis=1)]
            if len(kept_BD):
                self.sampled_rows += len(kept_BD)
                yield np.ascontiguousarray(kept_BD, np.float32)

    def _add(self, block_BD: NDArray[np.floating]) -> NDArray[np.floating]:
        """Counts the block; its finite rows."""
        self.rows += len(block_BD)
        finite_BD = block_BD
        if not np.isfinite(block_BD).all():
            self.nan += int(np.isnan(block_BD).sum())
            self.infinite += int(np.isinf(block_BD).sum())
            finite_BD = block_BD[np.isfinite(block_BD).all(axis=1)]
        if not finite_BD.size:
            return finite_BD
        if self.lowest_D is None or self.highest_D is None:
            self.shift = float(finite_BD.mean(dtype=np.float64))
            self.lowest_D, self.highest_D = np.full(self.width, np.inf), np.full(self.width, -np.inf)
        np.minimum(self.lowest_D, finite_BD.min(axis=0), out=self.lowest_D)
        np.maximum(self.highest_D, finite_BD.max(axis=0), out=self.highest_D)
        self.zeros += finite_BD.size - int(np.count_nonzero(finite_BD))
        shifted_BD = np.subtract(finite_BD, self.shift, dtype=np.float64)
        self.sum += float(shifted_BD.sum())
        self.squares += float(np.vdot(shifted_BD, shifted_BD))
        self.norms.append(np.sqrt(np.einsum("nd,nd->n", finite_BD, finite_BD, dtype=np.float64)))
        return finite_BD

    def result(self, rank: float | None) -> RowStatistics:
        norms_N = np.concatenate(self.norms) if self.norms else np.empty(0)
        one_value_D = np.zeros(0, bool)
        if self.lowest_D is not None and self.highest_D is not None:
            one_value_D = self.lowest_D == self.highest_D
        dead_D = one_value_D & (self.lowest_D == 0) if self.lowest_D is not None else one_value_D
        count = len(norms_N) * self.width
        spread = self.squares - self.sum**2 / count if count else 0.0
        return RowStatistics(
            rows=self.rows,
            nan=self.nan,
            infinite=self.infinite,
            bad_rows=self.rows - len(norms_N),
            norms=summary(norms_N) if len(norms_N) else None,
            mean=self.shift + self.sum / count if count else None,
            deviation=max(spread, 0.0) ** 0.5 / count**0.5 if count else None,
            zeros=self.zeros / count if count else None,
            dead=np.flatnonzero(dead_D).tolist(),
            constant=np.flatnonzero(one_value_D & ~dead_D).tolist(),
            effective_rank=rank,
            rank_rows=self.sampled_rows,
        )


def summary(values_N: NDArray[np.floating]) -> dict[str, float]:
    """min, median, mean and max of at least one value."""
    found = {"min": values_N.min(), "median": np.median(values_N), "mean": values_N.mean(dtype=np.float64)}
    return {name: float(value) for name, value in (found | {"max": values_N.max()}).items()}


def _rank(blocks: Iterator[NDArray[np.float32]]) -> float | None:
    """Effective rank of the rows; None for fewer than two."""
    first_BD = next(blocks, None)
    while first_BD is not None and len(first_BD) < 2:  # `moments` needs two rows in all
        following_BD = next(blocks, None)
        if following_BD is None:
            return None
        first_BD = np.concatenate([first_BD, following_BD])
    if first_BD is None:
        return None

    def everything() -> Iterator[NDArray[np.float32]]:
        yield first_BD
        yield from blocks

    variance_D = np.linalg.eigvalsh(moments(everything()).covariance_DD)
    rounding = FLOAT32_ROUNDING if len(variance_D) >= WIDE else np.finfo(np.float64).eps * len(variance_D)
    return effective_rank(np.where(variance_D > rounding * variance_D.max(), variance_D, 0.0))


@dataclass(frozen=True)
class ImageStatistics:
    """Of images uint8 [N, C, H, W].

    mean and deviation: of each channel, in [0, 1]. constant: images whose channels have one value each. repeated:
    images whose pixels equal those of an earlier one.
    """

    lowest: int
    highest: int
    mean: list[float]
    deviation: list[float]
    constant: int
    repeated: int


def image_statistics(blocks: Iterable[NDArray[np.uint8]]) -> ImageStatistics:
    """Of blocks of images; ValueError if there is none."""
    histograms: NDArray[np.int64] | None = None
    constant, repeated, seen = 0, 0, set[bytes]()
    for block_BCHW in blocks:
        counts_C = [np.bincount(channel.reshape(-1), minlength=256) for channel in block_BCHW.swapaxes(0, 1)]
        histograms = np.stack(counts_C) + (0 if histograms is None else histograms)
        flat_BCP = block_BCHW.reshape(*block_BCHW.shape[:2], -1)
        constant += int((flat_BCP == flat_BCP[:, :, :1]).all(axis=(1, 2)).sum())
        digests = [blake2b(image.tobytes(), digest_size=16).digest() for image in block_BCHW]
        before = len(seen)
        seen.update(digests)
        repeated += len(digests) - (len(seen) - before)
    if histograms is None:
        raise ValueError("no images")
    values = np.arange(256) / 255
    weights_C = histograms / histograms.sum(axis=1, keepdims=True)
    mean_C = weights_C @ values
    deviation_C = np.sqrt(np.maximum(weights_C @ values**2 - mean_C**2, 0))
    present = np.flatnonzero(histograms.sum(axis=0))
    return ImageStatistics(int(present[0]), int(present[-1]), mean_C.tolist(), deviation_C.tolist(), constant, repeated)


def size_statistics(sizes_K: NDArray[np.integer]) -> dict[str, float]:
    """`cluster_statistics`, and the median size of the clusters that have images and how many have a single one."""
    filled_K = sizes_K[sizes_K > 0]
    return cluster_statistics(sizes_K) | {
        "median": float(np.median(filled_K)),
        "of_one_image": int((sizes_K == 1).sum()),
    }


@dataclass(frozen=True)
class LayerStatistics:
    """Weights and biases of a layer. norm: Euclidean, of all together. rms: norm / sqrt(parameters).

    change: norm of the difference from the epoch before / norm then; None without one, or if that is 0.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    parameters: int
    norm: float
    rms: float
    change: float | None
    non_finite: int


def layer_statistics(
    weights: Mapping[str, NDArray[np.generic]], before: Mapping[str, NDArray[np.generic]] | None
) -> list[LayerStatistics]:
    """Of each layer of a checkpoint, by name, 2 before 10; batch norm's running statistics are no weights."""
    layers: dict[str, list[str]] = {}
    for name in sorted(weights, key=natural_order):
        layer, _, kind = name.rpartition(".")
        if kind not in BUFFERS:
            layers.setdefault(layer or kind, []).append(name)
    return [_layer(name, {key: weights[key] for key in keys}, before) for name, keys in layers.items()]


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts body.2 before body.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _layer(
    name: str, tensors: Mapping[str, NDArray[np.generic]], before: Mapping[str, NDArray[np.generic]] | None
) -> LayerStatistics:
    values = _flat(tensors)
    known = before is not None and all(key in before and before[key].shape == tensors[key].shape for key in tensors)
    old = _flat({key: before[key] for key in tensors}) if known and before is not None else None
    norm, old_norm = float(np.linalg.norm(values)), 0.0 if old is None else float(np.linalg.norm(old))
    return LayerStatistics(
        name=name,
        shapes={key.rpartition(".")[2]: tuple(tensor.shape) for key, tensor in tensors.items()},
        parameters=len(values),
        norm=norm,
        rms=norm / max(1, len(values)) ** 0.5,
        change=float(np.linalg.norm(values - old)) / old_norm if old is not None and old_norm else None,
        non_finite=int((~np.isfinite(values)).sum()),
    )


def _flat(tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(tensor, np.float64).reshape(-1) for tensor in tensors.values()])

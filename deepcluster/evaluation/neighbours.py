"""k-nearest-neighbours classification of frozen features (Wu et al. 2018, section 3.4).

The k training rows of the largest cosine similarity s vote for their class, each with weight exp(s / 0.07). The class
with the largest sum wins, of equal ones the one with the lowest number. Nothing is trained.
Shapes: L rows to learn from, S rows to score, D features, K neighbours, C classes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcluster.blockwise import in_order, l2_normalize, one_thread_a_product
from deepcluster.clustering.assignment import slices
from deepcluster.evaluation.held_out import Examples

TEMPERATURE = 0.07
_BLOCK_ROWS = 1024
_MOST_ON_GPU = 2048  # neighbours that faiss finds there


def knn_accuracies(examples: Examples, ks: Sequence[int], *, gpu: bool = False) -> dict[int, float]:
    """Share of the scored rows classified right, for each k; a k of more rows than there are to learn from is left out.

    `gpu`: faiss searches on all GPUs.
    """
    possible = [k for k in ks if k <= len(examples.learn_LD)]
    if not possible:
        return {}
    on_gpu = gpu and max(possible) <= _MOST_ON_GPU
    similarities_SK, rows_SK = most_similar(examples.learn_LD, examples.score_SD, max(possible), gpu=on_gpu)
    classes_SK = examples.learn_targets_L[rows_SK]
    return {
        k: float(np.mean(votes(similarities_SK[:, :k], classes_SK[:, :k]) == examples.score_targets_S))
        for k in possible
    }


def votes(
    similarities_SK: NDArray[np.floating], classes_SK: NDArray[np.int64], *, temperature: float = TEMPERATURE
) -> NDArray[np.int64]:
    """The class that each row's neighbours elect, int64 [S]."""
    weights_SK = np.exp(similarities_SK.astype(np.float64) / temperature)
    sums_SC = np.zeros((len(classes_SK), int(classes_SK.max()) + 1))
    np.add.at(sums_SC, (np.arange(len(classes_SK))[:, None], classes_SK), weights_SK)
    return np.asarray(sums_SC.argmax(axis=1))


def most_similar(
    learn_LD: NDArray[np.float32], score_SD: NDArray[np.float32], count: int, *, gpu: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine similarities float32 [S, K] and row numbers int64 [S, K] of the most similar rows, those first.

    An exhaustive search; blocks of rows, one thread each, so the bytes do not depend on the number of threads.
    """
    import faiss

    index: Any = faiss.IndexFlatIP(learn_LD.shape[1])
    if gpu:
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(l2_normalize(learn_LD))
    unit_SD = l2_normalize(score_SD)

    def search(rows: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if not gpu:
            faiss.omp_set_num_threads(1)  # of the thread that calls; the blocks are what runs at once
        found: tuple[NDArray[np.float32], NDArray[np.int64]] = index.search(unit_SD[rows], count)
        return found

    with one_thread_a_product():
        blocks = slices(len(unit_SD), _BLOCK_ROWS)
        results: Iterable[Any] = map(search, blocks) if gpu else in_order(search, blocks)
        similarities, rows = zip(*results, strict=True)
    return np.concatenate(similarities), np.concatenate(rows)

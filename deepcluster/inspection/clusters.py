"""The clusters one by one: size, classes, and central, borderline and random members, in sheets of twenty.

Shapes: N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deepcluster.inspection.gallery import most_central
from deepcluster.inspection.page import counted, data_uri, name_text, section
from deepcluster.inspection.thumbnails import Images, Picture, strips
from deepcluster.seeding import derive_seed

GALLERY_BYTES = 7_000_000  # of WebP; base64 makes 9.3 MB of it
MOST_CLUSTERS = 1000
A_SHEET = 20
NAMED_CLASSES = 3

Members = dict[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Cluster:
    """One cluster of the gallery.

    members: what is shown of it, by kind ("most central", ...), never empty. classes: the most frequent ones with
    their shares, most frequent first; None without targets.
    """

    number: int
    size: int
    members: Members
    classes: tuple[tuple[str, float], ...] | None

    @property
    def purity(self) -> float | None:
        """The share of the most frequent class."""
        return None if self.classes is None else self.classes[0][1]


def describe_clusters(
    labels_N: npt.NDArray[np.integer[Any]],
    distances_N: npt.NDArray[np.floating[Any]],
    targets_N: npt.NDArray[np.integer[Any]] | None,
    class_names: Sequence[str] | None,
    per_cluster: int,
    *,
    ratios_N: npt.NDArray[np.floating[Any]] | None = None,
    seed: int = 0,
) -> list[Cluster]:
    """Every non-empty cluster, largest first (ties by number).

    ratios_N: of each sample the distance to its own centroid over that to the next; the borderline members are those
    with the largest. Borderline and random members are shown of clusters that have more than per_cluster.
    """
    central = most_central(labels_N, distances_N, per_cluster=per_cluster)
    numbers, inverse, sizes = np.unique(labels_N, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    clusters = []
    for number, size, indices in zip(map(int, numbers), map(int, sizes), members, strict=True):
        shown: Members = {"most central": central[number]}
        if size > per_cluster:
            if ratios_N is not None:
                shown["nearest to another cluster"] = indices[np.argsort(-ratios_N[indices], kind="stable")][
                    :per_cluster
                ]
            generator = np.random.default_rng(derive_seed(seed, "gallery", number))
            shown["random"] = np.sort(generator.choice(indices, per_cluster, replace=False))
        classes = None if targets_N is None else _classes(targets_N[indices], class_names)
        clusters.append(Cluster(number, size, shown, classes))
    return sorted(clusters, key=lambda cluster: (-cluster.size, cluster.number))


def _classes(targets: npt.NDArray[np.integer[Any]], class_names: Sequence[str] | None) -> tuple[tuple[str, float], ...]:
    found, counts = np.unique(targets, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:NAMED_CLASSES]
    return tuple(
        (class_names[int(found[i])] if class_names else str(found[i]), float(counts[i] / len(targets))) for i in order
    )


def gallery(
    clusters: Sequence[Cluster], images: Images, sample_ids: Sequence[str], *, most: int = MOST_CLUSTERS
) -> str:
    """The section of the page: at most so many clusters, as many pictures as GALLERY_BYTES allow."""
    shown = clusters[:most]
    wanted = [numbers for cluster in shown for numbers in cluster.members.values()]
    pictures = strips(images, wanted, most_bytes=GALLERY_BYTES)
    notes = [
        "Clusters from large to small. Most central: the images nearest to the centroid, nearest first. Nearest to "
        "another cluster: where the distance to the centroid is the largest share of that to the next one."
    ]
    if len(shown) < len(clusters):
        notes.append(f"The {len(clusters) - len(shown):,} smallest clusters are left out.")
    if len(pictures) < len(wanted):
        notes.append(
            f"To keep this page small, only the first {len(pictures):,} of {len(wanted):,} rows have pictures."
        )
    remaining = iter([*pictures, *[None] * (len(wanted) - len(pictures))])
    articles = [_article(cluster, [next(remaining) for _ in cluster.members], sample_ids) for cluster in shown]
    sheets = [
        f'<div class="sheet"{" hidden" if start else ""}>\n{"".join(articles[start : start + A_SHEET])}</div>'
        for start in range(0, len(articles), A_SHEET)
    ]
    search = (
        '<label>Go to cluster <input id="jump" type="number" min="0"></label> <span id="jumped" role="status"></span>'
    )
    pagers = (_pager(search), _pager()) if len(sheets) > 1 else ("", "")
    return section("clusters", "Clusters", f"<p>{' '.join(notes)}</p>", pagers[0], *sheets, pagers[1])


def _pager(more: str = "") -> str:
    return (
        '<div class="controls pager" hidden><button type="button" class="back">Back</button>'
        f'<span class="where"></span><button type="button" class="on">Next</button>{more}</div>'
    )


def _article(cluster: Cluster, pictures: Sequence[Picture | None], sample_ids: Sequence[str]) -> str:
    facts = counted(cluster.size, "image")
    if cluster.classes is not None:
        facts += f", purity {cluster.purity:.0%}, mostly {name_text(cluster.classes[0][0])}"
    figures, names = [], []
    for (kind, numbers), picture in zip(cluster.members.items(), pictures, strict=True):
        label = f"all {len(numbers)}" if len(numbers) == cluster.size > 1 else kind
        label = "the only image" if cluster.size == 1 else label
        if picture is not None:
            figures.append(
                _figure(label, picture, f"Cluster {cluster.number}, {label}: {counted(len(numbers), 'image')}")
            )
        named = ", ".join(name_text(sample_ids[int(index)]) for index in numbers)
        names.append(f"<p><b>{label}:</b> {named}</p>")
    return (
        f'<article id="cluster-{cluster.number}">\n<h3>Cluster {cluster.number}: {facts}</h3>\n{_mix(cluster)}'
        f"{''.join(figures)}<details><summary>file names</summary>{''.join(names)}</details>\n</article>\n"
    )


def _figure(label: str, picture: Picture, alt: str) -> str:
    return (
        f'<figure><figcaption>{label}</figcaption><div class="wide"><img loading="lazy" alt="{alt}" '
        f'width="{picture.width}" height="{picture.height}" src="{data_uri(picture.content)}"></div></figure>\n'
    )


def _mix(cluster: Cluster) -> str:
    """The shares of classes as a bar and in words, where a cluster has more than one class."""
    if cluster.classes is None or len(cluster.classes) == 1:
        return ""
    bars = "".join(f'<i style="width:{share:.1%}"></i>' for _, share in cluster.classes)
    words = [f"{name_text(name)} {share:.0%}" for name, share in cluster.classes]
    rest = 1 - sum(share for _, share in cluster.classes)
    if rest > 1e-9:
        words.append(f"others {rest:.0%}")
    return f'<div class="mix" aria-hidden="true">{bars}</div><p class="soft">{", ".join(words)}</p>\n'

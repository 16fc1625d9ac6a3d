"""What to try against bad clusters: the settings that decide them, by method and section of params.yaml."""

from dataclasses import dataclass

from deepcluster.params import ClusterMethod


@dataclass(frozen=True)
class Remedies:
    """Pieces of a sentence, such as `a smaller cluster.k`.

    k, whiten: the keys. fewer: makes fewer clusters, which are steadier too. others: make other ones, `a, b, c`.
    """

    k: str
    whiten: str
    fewer: str
    others: str


def remedies(method: ClusterMethod, *, refined: bool = False) -> Remedies:
    """Of an epoch clustered by `method`; `refined`: beyond refine.after, where section `refine` decides."""
    section, whiten = ("refine", "refine.whiten") if refined else ("cluster", "pca.whiten")
    k = f"{section}.k"
    fewer = f"a smaller {k}"
    others = f"another {k}, {whiten}, {section}.restarts"
    if method == "spectral":
        others = f"another {k}, other cluster.spectral.neighbours or extra_vectors, {whiten}"
    elif method == "pic":
        fewer = "more cluster.pic.neighbours"
        others = f"another cluster.pic.sigma, {whiten}"
    return Remedies(k, whiten, fewer, others)

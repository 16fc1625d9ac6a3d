"""A comparison as titled blocks for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepcluster.console import Block, Listing, Pairs, number_text
from deepcluster.inspection.tables import Cells

Found = Mapping[str, Any]
MATRIX_CLUSTERS = 20
MOST = 12


def blocks(found: Found) -> Iterator[Block]:
    """What `compare` found: agreement, confusion (of few clusters), the largest flows, splits and merges, files."""
    a, b = found["a"], found["b"]
    drift = number_text(found["cka"]) if found["cka_problem"] is None else f"- ({found['cka_problem']})"
    sampled = "" if found["cka_rows"] in (0, found["images"]) else f", of {found['cka_rows']:,} rows"
    yield Pairs(
        f"A: {a['name']}, {len(a['sizes']):,} clusters; B: {b['name']}, {len(b['sizes']):,} clusters",
        [
            ("images", f"{found['images']:,}"),
            ("ARI", f"{found['ari']:.4f}"),
            ("NMI", f"{found['nmi']:.4f}"),
            ("moved", f"{found['moved']:,} images, {found['moved_share']:.1%}"),
            ("vanished", _numbers(found["vanished"], "of A without a successor in B")),
            ("appeared", _numbers(found["appeared"], "of B that continue none of A")),
            ("CKA", f"{drift}{sampled} (linear, of the features; 1: the same but for rotation and scale)"),
        ],
    )
    if max(len(a["sizes"]), len(b["sizes"])) <= MATRIX_CLUSTERS:
        yield Listing(
            "Images by cluster of A (rows) and B (columns, beside the row that each continues)", _matrix(found)
        )
    if found["flows"]:
        yield Listing("The largest moves", _flows(found["flows"]))
    share = f"{found['threshold']:.0%}"
    yield Pairs(f"Split: clusters of A with {share} or more in each of several of B", _parts(found["split"], "into"))
    yield Pairs(
        f"Merged: clusters of B with {share} or more from each of several of A", _parts(found["merged"], "from")
    )
    yield Pairs("Files", [*((path.rpartition("/")[2], path) for path in found["files"]), _sheet(found["sheet"])])


def _matrix(found: Found) -> Cells:
    """Clusters with images; matched ones on the diagonal."""
    counts = {(cell["a"], cell["b"]): cell["images"] for cell in [*found["matches"], *found["flows"]]}
    partners = {cell["a"]: cell["b"] for cell in found["matches"]}
    rows = [*sorted(partners), *found["vanished"]]
    columns = [*(partners[a] for a in sorted(partners)), *found["appeared"]]
    body = [[str(a), *(str(counts.get((a, b), "-")) for b in columns)] for a in rows]
    return Cells(["A \\ B", *map(str, columns)], body)


def _flows(flows: Sequence[Found]) -> Cells:
    shown = [[f"{flow['a']} -> {flow['b']}", str(flow["images"])] for flow in flows[:MOST]]
    left = flows[MOST:]
    more = [[f"{len(left)} others", str(sum(flow["images"] for flow in left))]] if left else []
    return Cells(["A -> B", "images"], [*shown, *more])


def _parts(found: Sequence[Found], name: str) -> list[tuple[str, str]]:
    shown = [
        (
            str(parts["cluster"]),
            f"{parts['images']:,} images, {name} "
            + ", ".join(f"{part['cluster']} ({part['images'] / parts['images']:.0%})" for part in parts[name]),
        )
        for parts in found[:MOST]
    ]
    left = len(found) - MOST
    return ([*shown, ("...", f"and {left:,} more")] if left > 0 else shown) or [("none", "")]


def _numbers(clusters: Sequence[int], what: str) -> str:
    """`none`, or which clusters."""
    if not clusters:
        return "none"
    named = ", ".join(map(str, clusters[:MOST])) + (" ..." if len(clusters) > MOST else "")
    return f"{len(clusters):,} {what}: {named}"


def _sheet(sheet: Found) -> tuple[str, str]:
    if sheet["path"] is None:
        return "movers.png", f"none: {sheet['problem']}"
    return "movers.png", (
        f"{sheet['path']}, a row for each move above: the most central image of the old cluster, images that moved, "
        "the most central of the new cluster"
    )

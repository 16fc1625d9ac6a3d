"""A description of an artifact as titled blocks for people."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepcluster.console import Bars, Block, Listing, Pairs, bytes_text, number_text
from deepcluster.inspection.tables import Cells

Found = Mapping[str, Any]
MOST_BARS = 40
BINS = 20
NAMED = 10
TENSORS = {"average": "averaged weights", "bank": "bank of projections"}


def blocks(found: Found) -> Iterator[Block]:
    """What `describe` found: the artifact, its arrays, where it comes from, its statistics."""
    yield Pairs(_title(found), [("on disk", f"{bytes_text(found['bytes'])} in {found['files']:,} files")])
    if found["artifact"] == "checkpoint":
        tensors = found["statistics"]["tensors"]
        counts = ", ".join(f"{count} {TENSORS.get(file, file)}" for file, count in tensors.items())
        yield Pairs("Tensors (safetensors, uncompressed)", [("count", counts)])
    else:
        yield Listing("Arrays (zarr format 3)", _arrays(found["arrays"]))
    yield _provenance(found)
    statistics = found["statistics"]
    match found["artifact"]:
        case "dataset":
            yield from _dataset(statistics)
        case "features":
            yield _rows(statistics, "features")
        case "pca":
            yield _rows(statistics, "reduced")
            yield from _explained(statistics["explained_variance"])
        case "clusters":
            yield from _clusters(statistics)
        case "checkpoint":
            yield from _checkpoint(statistics)


def _title(found: Found) -> str:
    epoch = "" if found["epoch"] is None else f" of epoch {found['epoch']}"
    revision = "" if found["revision"] is None else f" at {found['revision']}"
    return f"{found['artifact']}{epoch}{revision}: {found['path']}"


def _arrays(arrays: Sequence[Found]) -> Cells:
    columns = ["array", "shape", "dtype", "chunk", "shard", "codecs", "raw", "on disk", "ratio"]
    rows = [
        [
            array["name"],
            _shape(array["shape"], array["dimensions"]),
            array["dtype"],
            "x".join(map(str, array["chunks"])),
            "x".join(map(str, array["shards"] or ())) or "-",
            "+".join(array["codecs"]),
            bytes_text(array["raw_bytes"]),
            bytes_text(array["stored_bytes"]),
            f"{array['raw_bytes'] / max(1, array['stored_bytes']):.2f}",
        ]
        for array in arrays
    ]
    return Cells(columns, rows)


def _shape(shape: Sequence[int], dimensions: Sequence[str]) -> str:
    if len(dimensions) != len(shape):
        return "x".join(map(str, shape))
    return " ".join(f"{name}={length}" for name, length in zip(dimensions, shape, strict=True))


def _provenance(found: Found) -> Pairs:
    origin, lock = found["provenance"], found["lock"]
    rows = [
        ("layout", f"{origin['schema']}, version {origin['version']}"),
        ("samples", f"{origin['samples']:,}, ids sha256 {origin['ids'][:16]}..."),
        ("seed", str(origin.get("seed", "-"))),
        ("params", ", ".join(_flat(origin["params"])) or "-"),
        ("md5", found["md5"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in origin["packages"].items())),
    ]
    if lock is None:
        rows.append(("stage", "dvc.lock does not know this artifact: its run goes on, or it was not made by DVC"))
    else:
        rows.append(("stage", lock["stage"]))
        rows += [("parent", f"{path}, md5 {md5}") for path, md5 in lock["parents"].items()]
    return Pairs("Provenance", rows)


def _flat(params: Found, prefix: str = "") -> Iterator[str]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={value if isinstance(value, str) else json.dumps(value)}"


def _dataset(found: Found) -> Iterator[Block]:
    images, recorded = found["images"], found["recorded"]
    yield Pairs(
        "Pixels",
        [
            ("values", f"{images['lowest']} to {images['highest']}"),
            ("mean", f"{_list(images['mean'])} (recorded {_list(recorded['mean'])})"),
            ("deviation", f"{_list(images['deviation'])} (recorded {_list(recorded['std'])})"),
            ("of one colour", f"{images['constant']:,} images"),
            ("repeated", f"{images['repeated']:,} images equal an earlier one"),
            ("first ids", ", ".join(found["first_ids"])),
            ("skipped files", _first(found["skipped"])),
        ],
    )
    if found["classes"] is None:
        yield Pairs("Classes", [("targets", "none: the data set has no true labels")])
    else:
        yield _sizes("Images of each class", found["classes"])


def _rows(found: Found, name: str) -> Pairs:
    norms = found["norms"]
    rank, rows = found["effective_rank"], found["rank_rows"]
    sampled = "" if rows == found["rows"] else f", of {rows:,} rows"
    return Pairs(
        f"Statistics of {name}",
        [
            ("NaN, infinite", f"{found['nan']:,}, {found['infinite']:,} values in {found['bad_rows']:,} rows"),
            ("norms", "-" if norms is None else _summary(norms)),
            ("values", f"mean {number_text(found['mean'])}, deviation {number_text(found['deviation'])}"),
            ("zeros", "-" if found["zeros"] is None else f"{found['zeros']:.1%} of the values"),
            ("always 0 (dead)", _first(found["dead"])),
            ("another constant", _first(found["constant"])),
            ("effective rank", f"{number_text(rank)}{sampled}"),
        ],
    )


def _explained(found: Found | None) -> Iterator[Block]:
    if found is None:
        yield Pairs("Explained variance", [("kept", "all: pca.enabled is false")])
        return
    needed = ", ".join(
        f"{share} by {'more than these' if count is None else count}"
        for share, count in found["components_for"].items()
    )
    total = len(found["ratio"])
    yield Pairs("Explained variance", [("kept", f"{found['kept']:.1%} by {total} components"), ("shares", needed)])
    first = found["ratio"][:BINS]
    yield Bars(
        "Share of each component" + (f" (the first {BINS} of {total})" if total > BINS else ""),
        [(str(number), ratio, f"{ratio:.2%}") for number, ratio in enumerate(first)],
    )


def _clusters(found: Found) -> Iterator[Block]:
    size, health, objective = found["size"], found["health"], found["objective"]
    yield Pairs(
        "Statistics",
        [
            ("clusters", f"{found['k']:,}, {size['empty']:,} empty, {size['of_one_image']:,} of one image"),
            ("sizes", f"{size['smallest']:,} to {size['largest']:,} images, median {number_text(size['median'])}"),
            ("effective k", f"{size['effective_k']:.1f}, largest share {size['largest_share']:.1%}"),
            ("distances", f"{_summary(found['squared_distance'])} (squared, to the centroid)"),
            ("objective", _objective(objective)),
            ("trained on", f"{found['trained_on']:,} rows"),
            ("feature rank", number_text(health["feature_rank"])),
            ("drift", f"{number_text(health['drift'])} (1 - NMI with the epoch before)"),
        ],
    )
    yield _sizes("Images of each cluster", {str(number): size for number, size in enumerate(found["sizes"])})


def _objective(values: Sequence[float]) -> str:
    if not values:
        return "-"
    steps = f" after {len(values)} iterations" if len(values) > 1 else ""
    return (f"{number_text(values[0])} -> " if len(values) > 1 else "") + number_text(values[-1]) + steps


def _sizes(title: str, sizes: Mapping[str, int]) -> Bars:
    """A bar for each; of more than MOST_BARS a histogram: how many have so many images."""
    if len(sizes) <= MOST_BARS:
        return Bars(title, [(name, float(size), f"{size:,}") for name, size in sizes.items()])
    lowest, highest = min(sizes.values()), max(sizes.values())
    width = max(1, -(-(highest - lowest + 1) // BINS))
    counts = [0] * (-(-(highest - lowest + 1) // width))
    for size in sizes.values():
        counts[(size - lowest) // width] += 1
    rows = [(_bin(lowest + place * width, width), float(count), f"{count:,}") for place, count in enumerate(counts)]
    return Bars(f"{title}: how many of {len(sizes):,} have so many", rows)


def _bin(start: int, width: int) -> str:
    return f"{start:,}" if width == 1 else f"{start:,} to {start + width - 1:,}"


def _checkpoint(found: Found) -> Iterator[Block]:
    before = found["compared_with"]
    since = "no epoch before it is there" if before is None else f"since epoch {before}"
    yield Pairs(
        "Weights",
        [
            ("parameters", f"{found['parameters']:,}, {found['non_finite']:,} of them NaN or infinite"),
            ("norm", number_text(found["norm"])),
            ("change", f"{since} (norm of the difference / norm before)"),
        ],
    )
    columns = ["layer", "shapes", "parameters", "norm", "rms", "change"]
    rows = [
        [
            layer["name"],
            " ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in layer["shapes"].items()),
            str(layer["parameters"]),
            number_text(layer["norm"]),
            number_text(layer["rms"]),
            number_text(layer["change"]),
        ]
        for layer in found["layers"]
    ]
    yield Listing("Layers", Cells(columns, rows))


def _summary(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number_text(value)}" for name, value in found.items())


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _first(values: Sequence[Any]) -> str:
    """How many, and the first of them."""
    if not values:
        return "none"
    named = ", ".join(map(str, values[:NAMED]))
    return f"{len(values):,}: {named}" + (" ..." if len(values) > NAMED else "")

"""Which settings artifacts were made with, beside those that params.yaml has now."""

from collections.abc import Iterator, Mapping
from typing import Any

from deepcluster import artifacts, layout
from deepcluster.artifacts.provenance import plain
from deepcluster.params import Params, at_epoch

NAMED = 5


def data_changed(images: artifacts.Store, params: Params) -> list[str]:
    """Keys of section `data` that are not those that the images were made with."""
    return list(_differing("data", images.attributes["params"], params.data.model_dump()))


def changed(images: artifacts.Store, params: Params, *, last: int) -> list[str]:
    """Dotted keys in which params.yaml differs from what the run of `last` epochs was made with; epochs among them.

    Read off the attributes of images, of the checkpoints of epochs 0 and `last`, and of `last`'s clusters, where these
    are there.
    """
    found = data_changed(images, params)
    if params.epochs != last:
        found.append("epochs")
    found += _differing("model", artifacts.checkpoint_params(layout.checkpoint(0)), params.model.model_dump())
    if layout.clusters(last).exists():
        clusters = artifacts.open_store(layout.clusters(last), "clusters", made_by=f"cluster@{last}")
        found += _differing("cluster", clusters.attributes["params"], at_epoch(params, last).cluster.model_dump())
    trained = artifacts.checkpoint_params(layout.checkpoint(last))
    for section in ("train", "augment"):
        found += _differing(section, trained.get(section, {}), getattr(params, section).model_dump())
    return found


def in_words(keys: list[str]) -> str:
    """`cluster.k, epochs and 3 more`."""
    return ", ".join(keys[:NAMED]) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def _differing(prefix: str, used: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Keys of `wanted`, dotted, whose value in `used` is another; of those that `used` lacks nothing is known."""
    for key, value in plain(wanted).items():
        if isinstance(value, dict):
            yield from _differing(f"{prefix}.{key}", used.get(key) or {}, value)
        elif key in used and used[key] != value:
            yield f"{prefix}.{key}"

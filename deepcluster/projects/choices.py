"""Settings for a folder of images, each with the reason that stands beside it in params.yaml.

They follow from what was seen of the images alone: no machine, no true label. N images, S pixels a side, k clusters.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deepcluster.datasets.decoding import EMPTY
from deepcluster.errors import DataError, plural
from deepcluster.projects.look import Look

FEWEST = 10
SIDES = (128, 96, 64, 32)
PIXELS = 210_000_000  # of all images together: about what two cores get through in an evening
LEAST_SIDE = 8  # of data.image_size and of every architecture
CONVNET_LARGEST = 64
SEEN_AN_EPOCH = 7000  # images, as with Digits
LEAST_STEPS = 10
COMPONENTS = {"convnet": 64, "resnet18": 128}  # as for Digits, and as recipes/image-folder.yaml
BATCHES = {"convnet": 512, "resnet18": 256}  # of extract


@dataclass(frozen=True)
class Choice:
    """One key of params.yaml, its value and why."""

    key: str
    value: Any
    why: str


def choices(look: Look) -> list[Choice]:
    """What to set in params.yaml for these images. DataError for fewer than FEWEST."""
    readable = round(look.count * len(look.sides) / look.looked)
    if readable < FEWEST:
        raise DataError(
            f"{look.root}: {look.count} images, of which about {readable} can be read; clusters need {FEWEST} at least"
        )
    side = image_side(look)
    return [
        *_data(look, side),
        *_model(look, side),
        *_clusters(look),
        *_training(look.count, grey=look.grey),
        *(_grey_augmentation() if look.grey else _photo_augmentation()),
    ]


def image_side(look: Look) -> int:
    """The largest of 128, 96, 64, 32 that neither enlarges half of the images nor makes too many pixels of them all.

    Smaller images keep their size, from 8 pixels on.
    """
    if look.side <= SIDES[-1]:
        return max(LEAST_SIDE, look.side)
    fitting = [side for side in SIDES if side <= look.side and look.count * side**2 <= PIXELS]
    return fitting[0] if fitting else SIDES[-1]


def clusters_of(count: int) -> int:
    """k for N images: 0.7 sqrt(N) in two digits, at least 2 and at most 1,000; 30 for the 1,797 digits."""
    k = 0.7 * math.sqrt(count)
    step = int(10 ** max(0, math.floor(math.log10(k)) - 1))
    return min(1000, max(2, round(k / step) * step))


def _data(look: Look, side: int) -> Iterator[Choice]:
    labelled = f"{len(look.classes)} subfolders, taken for classes: scored by them" if look.classes else "no classes"
    yield Choice("data.name", "folder", f"{look.count:,} images, {labelled}; never trained on labels")
    yield Choice("data.root", str(look.root), "absolute, so the project may be moved; a relative one starts here")
    where = "the subfolder of that name; others are not read" if look.split == "train" else "the whole folder"
    yield Choice("data.split", look.split, where)
    low, high = min(look.sides), max(look.sides)
    sizes = f"{low}" if low == high else f"{low} to {high}, {look.side} in the middle"
    enlarged = " (enlarged: no network takes less)" if look.side < LEAST_SIDE else ""
    cost = "; more cost time with its square" if side < look.side else ""
    yield Choice("data.image_size", side, f"their shorter sides have {sizes} pixels{enlarged}{cost}")
    colour = f"all {look.looked} images looked at are grey" if look.grey else "the images have colour"
    yield Choice("data.grayscale", look.grey, colour)
    yield Choice("data.max_unreadable", *_unreadable(look))
    if look.follow_links:
        yield Choice("data.follow_links", True, "asked for with --follow-links")


def _unreadable(look: Look) -> tuple[float, str]:
    """The share to skip: twice what was found and a hundredth, since it was a sample."""
    share = max((len(look.unreadable)) / look.looked, (look.empty + look.refused) / (look.count + look.refused))
    if not share:
        return 0.0, f"none of {look.looked} images looked at was; one that is stops `prepare`, which names it"
    others = look.empty - sum(reason == EMPTY for reason in look.unreadable.values())
    found = [f"{len(look.unreadable):,} of {plural(look.looked, 'image')} looked at cannot be read"]
    found += [f"{plural(others, 'other file')} {'is' if others == 1 else 'are'} empty"] if others else []
    found += [f"{plural(look.refused, 'file')} may not be opened"] if look.refused else []
    return min(0.9, math.ceil(200 * share + 1) / 100), f"{', '.join(found)}; `prepare` lists what it skips"


def _model(look: Look, side: int) -> Iterator[Choice]:
    small = side <= CONVNET_LARGEST
    why = f"made for 8 to {CONVNET_LARGEST} pixels, and quick without a GPU" if small else f"for {side} pixels"
    arch = "convnet" if small else "resnet18"
    yield Choice("model.arch", arch, why)
    yield Choice("extract.batch_size", BATCHES[arch], f"of {side} pixels; a matter of memory, not of the result")
    components, of = min(COMPONENTS[arch], look.count // 2), "256" if small else "512"
    enough = components == COMPONENTS[arch]
    yield Choice("pca.components", components, f"of {of} features" if enough else "half of the images")


def _clusters(look: Look) -> Iterator[Choice]:
    k = clusters_of(look.count)
    about = f"about 0.7 times the root of {look.count:,}; more than the groups you expect is right"
    yield Choice("cluster.k", k, f"pseudo-labels to train on: {about}")
    yield Choice("refine.after", None, "nobody told how many groups there are; then about four fifths of epochs, and k")
    yield Choice("refine.k", None, "that number of groups, once it is known")
    found, as_many = final_clusters_of(look), "a cluster for each subfolder" if look.classes else "as the pseudo-labels"
    yield Choice("evaluate.k", None, f"clusters of the result: {found} so, {as_many}; any other number can be set")


def final_clusters_of(look: Look) -> int:
    """Clusters of the result with these settings, as `params.final_k` has it."""
    return len(look.classes) or clusters_of(look.count)


def _training(count: int, *, grey: bool) -> Iterator[Choice]:
    epochs = 20 if count < 50_000 else 10
    yield Choice("epochs", epochs, "as for Digits" if epochs == 20 else "so many images need fewer")
    yield Choice("train.schedule.epochs", epochs, "as many as epochs above: set both together")
    if not grey:
        yield Choice("train.schedule.warmup", 1.0, "rates rise while the first clusters still mean little")
    size = float(min(10, max(1, round(SEEN_AN_EPOCH / count))))
    yield Choice("train.epoch_size", size, f"{count * size:,.0f} images an epoch")
    batches = [batch for batch in (128, 64, 32) if count * size / batch >= LEAST_STEPS]
    batch = batches[0] if batches else 16
    yield Choice("train.batch_size", batch, f"{math.ceil(count * size / batch):,} steps an epoch")


def _grey_augmentation() -> Iterator[Choice]:
    yield Choice("augment.flip", False, "characters and charts do not mean the same mirrored; yours may: then true")


def _photo_augmentation() -> Iterator[Choice]:
    yield Choice("augment.crop", True, "photographs show the same thing from near and far")
    yield Choice("augment.crop_scale", [0.3, 1.0], "at least a third, so that the thing is still in it")
    yield Choice("augment.flip", True, "mirrored photographs show the same; false where left and right matter")
    for key in ("rotation", "translate", "shear"):
        yield Choice(f"augment.{key}", 0.0, "the crop moves them enough")
    yield Choice("augment.zoom", [1.0, 1.0], "the crop does it")
    for key in ("brightness", "contrast", "saturation"):
        yield Choice(f"augment.{key}", 0.4, "so that clusters follow what is seen, not the light; 0.0 where it matters")
    yield Choice("augment.hue", 0.1, "as brightness")
    yield Choice("augment.grayscale", 0.2, "so that clusters are not of colours; 0.0 where colour is the point")

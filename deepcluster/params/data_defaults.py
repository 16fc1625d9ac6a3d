"""What `augment` does by default depends on the data: null means what suits it."""

from typing import Literal

from deepcluster.params.sections import Augment, DataName

Padding = Literal["zeros", "border", "reflection"]
GREY: tuple[DataName, ...] = ("digits", "mnist", "fashionmnist", "kmnist", "usps")
NOT_MIRRORED: tuple[DataName, ...] = ("digits", "mnist", "kmnist", "usps", "gtsrb")  # characters and signs


def flips(augment: Augment, data: DataName) -> bool:
    """Whether images are mirrored left-right; if `augment.flip` is null, for data where that changes no class."""
    return data not in NOT_MIRRORED if augment.flip is None else augment.flip


def padding(augment: Augment, data: DataName) -> Padding:
    """What lies beyond an image that was turned or moved; if `augment.padding` is null, nothing (black) for grey data
    sets, whose ground is black, and the mirrored image for photographs."""
    return ("zeros" if data in GREY else "reflection") if augment.padding is None else augment.padding

"""How the learning rates change over the epochs: a factor on each optimizer's own rate."""

import math
from dataclasses import dataclass
from typing import Literal, assert_never


@dataclass(frozen=True)
class LearningRate:
    """A factor in [0, 1] for any moment of the training, counted in epochs from 0.

    warmup: epochs in which the factor of the others grows from zero in proportion. step: times gamma after each `every`
    epochs. cosine: half a cosine from 1, at the end of the warm-up, to `floor`, after `epochs` epochs, where it stays
    (Loshchilov and Hutter 2017, equation 5, without restarts).

    None of it depends on how many epochs are planned, so more epochs invalidate none that are trained.
    """

    name: Literal["constant", "step", "cosine"] = "constant"
    warmup: float = 0.0
    every: int = 30
    gamma: float = 0.1
    epochs: int | None = None
    floor: float = 0.0

    def factor(self, moment: float) -> float:
        """The factor at `moment`, in epochs since the training began. ValueError for a cosine without `epochs`."""
        risen = min(1.0, moment / self.warmup) if self.warmup else 1.0
        return risen * self._after_warmup(moment)

    def in_step(self, epoch: int, step: int, steps: int) -> float:
        """The factor for step 1..steps of epoch 1, 2, ...: the one in the middle of that step."""
        return self.factor(epoch - 1 + (step - 0.5) / steps)

    def _after_warmup(self, moment: float) -> float:
        match self.name:
            case "constant":
                return 1.0
            case "step":
                return self.gamma ** int(moment // self.every)
            case "cosine":
                if self.epochs is None:
                    raise ValueError("a cosine schedule needs its length in epochs")
                share = min(1.0, max(0.0, (moment - self.warmup) / (self.epochs - self.warmup)))
                return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * share)) / 2
            case _:
                assert_never(self.name)

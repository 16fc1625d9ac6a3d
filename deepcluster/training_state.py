"""All that a step of training changes, as arrays and back: what an epoch goes on with after it was interrupted.

The global generators are no part of it: dropout draws from a seed that is drawn anew in each step. Nor are learning
rates, which follow from the number of the step. S: steps taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deepcluster.artifacts import Array
from deepcluster.training import StepResult

MODULES, OPTIMIZERS, GENERATORS, FILLED, STEPS = "module", "optimizer", "generator", "filled", "steps"


@dataclass(frozen=True)
class TrainingState:
    """What is trained, by name; the optimizers, in order; CPU generators, by name; arrays that are filled in place."""

    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    generators: Mapping[str, torch.Generator]
    filled: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def arrays(self, results: Sequence[StepResult]) -> dict[str, Array]:
        """Everything as it is after these steps."""
        tensors = {
            f"{MODULES}.{part}.{name}": tensor
            for part, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }
        for number, optimizer in enumerate(self.optimizers):
            for weight, state in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"{OPTIMIZERS}.{number}.{weight}.{name}": value
                    for name, value in state.items()
                    if isinstance(value, torch.Tensor)
                }
        tensors |= {f"{GENERATORS}.{name}": each.get_state() for name, each in self.generators.items()}
        found: dict[str, Array] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        return found | {f"{FILLED}.{name}": array for name, array in self.filled.items()} | {STEPS: _rows(results)}

    def restore(self, arrays: Mapping[str, Array]) -> list[StepResult]:
        """Make everything as it was when `arrays` gave these; the steps taken until then."""
        for part, module in self.modules.items():
            module.load_state_dict(_tensors(arrays, f"{MODULES}.{part}."))
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in _tensors(arrays, f"{OPTIMIZERS}.{number}.").items():
                weight, _, key = name.partition(".")
                state.setdefault(int(weight), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        for name, generator in self.generators.items():
            generator.set_state(torch.from_numpy(arrays[f"{GENERATORS}.{name}"].copy()))
        for name, array in self.filled.items():
            array[...] = arrays[f"{FILLED}.{name}"]
        return _steps(arrays[STEPS])


def _tensors(arrays: Mapping[str, Array], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _rows(results: Sequence[StepResult]) -> NDArray[np.float64]:
    """float64 [S, fields of a step]; NaN, which no loss is, for None."""
    rows = [[np.nan if value is None else value for value in astuple(step)] for step in results]
    return np.array(rows, np.float64).reshape(len(rows), len(fields(StepResult)))


def _steps(rows_SF: Array) -> list[StepResult]:
    found = []
    for step, images, *measured in rows_SF.tolist():
        loss, accuracy, labelled, contrastive, lr = measured
        contrasted = None if np.isnan(contrastive) else contrastive
        found.append(StepResult(int(step), int(images), loss, accuracy, labelled, contrasted, lr))
    return found

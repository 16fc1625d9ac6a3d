"""Settings that come from the environment: how the work is done, never what comes out of it."""

import math
import os
from collections.abc import Callable

from deepcluster.errors import UserError


def number(name: str, default: float, fits: Callable[[float], bool], expected: str) -> float:
    """The number that the variable holds, `default` where it is unset or empty.

    UserError, `NAME: must be EXPECTED; got ...`, for what is no number, is NaN or does not fit.
    """
    text = os.environ.get(name) or str(default)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if math.isnan(found) or not fits(found):
        raise UserError(f"{name}: must be {expected}; got {text!r}")
    return found


def seconds(name: str, default: float, expected: str) -> float:
    """The same for a duration: over 0, and finite."""
    return number(name, default, lambda found: 0 < found < math.inf, expected)

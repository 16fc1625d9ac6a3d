"""Parts of a backbone that are not trained."""

from collections.abc import Sequence

from torch import nn

from deepcluster.errors import UserError

PARTS_NAMED = 20


def freeze(backbone: nn.Module, parts: Sequence[str]) -> None:
    """Exclude parts, named as in the state dict ("body.conv1", or one weight), from training.

    UserError for a name that fits no weight.
    """
    for weight in weights_of_parts(backbone, parts):
        weight.requires_grad_(False)


def weights_of_parts(backbone: nn.Module, parts: Sequence[str]) -> list[nn.Parameter]:
    """The weights of parts, as `freeze` names them; the same UserError."""
    found = []
    for part in parts:
        named = [weight for name, weight in backbone.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not named:
            raise UserError(f"train.freeze: no part {part!r} in this backbone; it has {_parts(backbone)}")
        found += named
    return found


def _parts(backbone: nn.Module) -> str:
    """Names that `freeze` takes, the largest parts first."""
    names = (part for name, _ in backbone.named_parameters() for part in _prefixes(name.rpartition(".")[0]))
    shown = sorted(dict.fromkeys(names), key=lambda name: name.count("."))
    return ", ".join(shown[:PARTS_NAMED]) + (" and more" if len(shown) > PARTS_NAMED else "")


def _prefixes(name: str) -> list[str]:
    """["a", "a.b"] of "a.b"."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]

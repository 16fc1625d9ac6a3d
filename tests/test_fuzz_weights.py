"""Weights made elsewhere: whatever a file holds, it gives weights for the backbone or an ArtifactError."""

import io
import itertools
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import REFUSED, edited, files, outcomes
from hypothesis import strategies as st
from safetensors.torch import save

from deepcluster.checkpoint import BackboneDescription
from deepcluster.errors import ArtifactError
from deepcluster.interop import read_foreign_weights

DESCRIPTION = BackboneDescription("alexnet", 3, 32, sobel=True)
NAMES = ["0.0.weight", "0.0.bias", "0.1.running_mean", "0.1.num_batches_tracked", "3.1.weight", "3.1.bias"]
SHAPES = [(4, 2, 3, 3), (4,), (4,), (), (5, 4), (5,)]
KINDS = [
    torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.uint16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
]  # fmt: skip


class Stem:
    """Stands in for AlexNet, with its names, but a few dozen weights in the place of 57 million."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            f"body.{name}": torch.ones(shape, dtype=torch.int64 if name.endswith("tracked") else torch.float32)
            for name, shape in zip(NAMES, SHAPES, strict=True)
        }


def original() -> dict[str, Any]:
    """What the original's program saves: its names, those of DataParallel among them, a head and fixed filters."""
    own = {"0": "features.module", "3": "classifier"}
    state = {
        f"{own[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor
        for name, tensor in zip(NAMES, (value for value in Stem().state_dict().values()), strict=True)
    }
    state |= {"top_layer.weight": torch.ones(2, 5), "sobel.0.weight": torch.ones(1, 3, 1, 1)}
    return {"epoch": 3, "arch": "alexnet", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def written(content: Any, *, zipped: bool) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse and quantised tensors
        torch.save(content, target, _use_new_zipfile_serialization=zipped)
    return target.getvalue()


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """What may stand where a tensor of floats is expected."""
    shape = draw(st.sampled_from([*SHAPES, (0,), (4, 3, 3, 3), (4, 2, 3), (1,) * 6]))
    kind = draw(st.sampled_from(["type", "type", "value", "lazy", "sparse", "meta", "quantised", "view", "other"]))
    plain = torch.ones(shape)
    match kind:
        case "type":
            return plain.to(draw(st.sampled_from(KINDS)))
        case "value":
            return plain * draw(st.sampled_from([float("nan"), float("inf"), -0.0, 1e38]))
        case "lazy":  # negated and conjugated when asked for
            return torch.complex(plain, plain).conj().imag
        case "sparse":
            return plain.to_sparse()
        case "meta":
            return plain.to("meta")
        case "quantised":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it will go
                return torch.quantize_per_tensor(plain, 0.1, 0, torch.quint8)
        case "view":
            return plain.expand(2, *shape)[0]
        case _:
            return draw(st.sampled_from([None, 1, "x", [1.0], {}, torch.nn.Parameter(plain), np.float64(1)]))


@st.composite
def torch_files(draw: st.DrawFn) -> bytes:
    """A checkpoint of the original with entries exchanged, left out, added or renamed; written by either torch.save."""
    content = original()
    state = content["state_dict"]
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*state]))
        match draw(st.sampled_from(["value", "value", "drop", "add", "rename", "shape"])):
            case "value":
                state[name] = draw(tensors())
            case "drop":
                del state[name]
            case "add":
                state[draw(st.sampled_from(["", ".", "module", "body.", 3, None, "features.module.9.weight"]))] = (
                    torch.ones(1)
                )
            case "rename":
                state[f"module.{name}"] = state.pop(name)
            case "shape":
                state[name] = torch.ones(draw(st.sampled_from(SHAPES)))
    shape = draw(st.sampled_from(["whole", "whole", "whole", "state", "arch", "nested", "empty"]))
    match shape:
        case "state":
            content = state
        case "arch":
            content["arch"] = draw(st.sampled_from(["vgg16", 3, None, ""]))
        case "nested":
            content["state_dict"] = [state]
        case "empty":
            content = draw(st.sampled_from([{}, [], None, 1, {"state_dict": {}}, "x"]))
    return written(content, zipped=draw(st.booleans()))


def fuzz_file(tmp_path: Path, name: str, suffix: str, inputs: st.SearchStrategy[bytes], *, quick: int) -> Counter[str]:
    number = itertools.count()

    def act(content: bytes) -> str:
        path = tmp_path / f"{next(number)}{suffix}"
        path.write_bytes(content)
        try:
            found = read_foreign_weights(path, DESCRIPTION, Stem())  # type: ignore[arg-type]
        except ArtifactError as error:
            assert "\n" not in str(error)
            assert str(error).startswith(f"{path}: ")
            raise
        finally:
            path.unlink()
        expected = {name: tensor.numpy().dtype for name, tensor in Stem().state_dict().items()}
        for key, array in found.items():
            assert isinstance(array, np.ndarray)
            assert array.dtype == expected.get(key, array.dtype)
            assert np.isfinite(array).all()
        return "read"

    counts = outcomes(f"weights: {name}", inputs, act, quick=quick)
    assert counts["read"] >= max(1, counts.total() // 100), counts
    assert counts[REFUSED] >= max(1, counts.total() // 100), counts
    return counts


@pytest.mark.filterwarnings("error::UserWarning")
def test_anything_that_torch_can_save(tmp_path):
    fuzz_file(tmp_path, "torch.save", ".pth.tar", torch_files(), quick=50)


def test_any_edit_of_a_file_of_torch(tmp_path):
    whole = [written(original(), zipped=zipped) for zipped in (True, False)]
    fuzz_file(tmp_path, "edited torch files", ".pth.tar", files(st.sampled_from(whole)), quick=50)


HEADERS = st.dictionaries(
    st.sampled_from(["arch", "channels", "image_size", "sobel", "grayscale", "x"]),
    st.sampled_from(
        ["alexnet", "vgg16", "3", "1", "2", "32", "true", "false", "null", "[]", "{}", "three", "", "1e400", "-1"]
    ),
    max_size=6,
)
WHOLE_HEADER = {"arch": "alexnet", "channels": "3", "image_size": "32", "sobel": "true", "grayscale": "false"}


def test_safetensors_and_what_their_headers_say(tmp_path):
    state = {name: tensor.clone() for name, tensor in Stem().state_dict().items()}
    headers = HEADERS | HEADERS.map(lambda changes: WHOLE_HEADER | changes)
    contents = headers.map(lambda header: save(state, metadata=header))
    fuzz_file(tmp_path, "safetensors", ".safetensors", contents | edited(contents), quick=50)

"""params.yaml as frozen, typed sections; every mistake is reported at once, with file, key, expected and found."""

from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deepcluster.errors import ParamsError, nearest

PARAMS_FILE = Path("params.yaml")

Arch = Literal["convnet", "alexnet", "resnet18"]
DataName = Literal["digits", "mnist", "folder"]
Precision = Literal["fp32", "bf16"]


def _sequence_to_tuple(value: Any) -> Any:
    """YAML has lists only; a frozen section holds tuples."""
    return tuple(value) if isinstance(value, list) else value


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("must be [low, high] with 0 < low <= high")
    return bounds


def _at_most_one(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("must not exceed 1, the image's whole area")
    return bounds


Range = Annotated[tuple[float, float], BeforeValidator(_sequence_to_tuple), AfterValidator(_ascending)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: immutable, no coercion ("1" is not a number), no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """Which images: see `deepcluster.datasets`."""

    name: DataName = "digits"
    root: str = "data/raw"
    split: str = "train"
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    grayscale: bool = False
    max_unreadable: Fraction = 0.0


class Model(Section):
    """The backbone and its fixed front end: see `deepcluster.models`."""

    arch: Arch = "convnet"
    sobel: bool = False
    weights: str | None = None


class Extract(Section):
    """Backbone + images -> features: see `deepcluster.features`."""

    batch_size: Count = 512
    precision: Precision = "fp32"
    compile: bool = False


class Pca(Section):
    """Features -> reduced features: see `deepcluster.reduction`."""

    enabled: bool = True
    backend: Literal["streaming", "sklearn", "faiss"] = "streaming"
    components: Count = 64
    whiten: bool = True
    normalize: bool = True


class Collapse(Section):
    """Beyond which a clustering counts as collapsed: see `deepcluster.clustering.health`.

    min_effective_k, max_empty: shares of k. max_largest_share: of the images (and 1/k of the rest).
    min_feature_rank: directions that features vary along. max_drift: 1 - NMI with the epoch before; 1 allows any.
    """

    min_effective_k: Annotated[float, Field(ge=0, le=1)] = 0.2
    max_largest_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_empty: Annotated[float, Field(ge=0, le=1)] = 0.5
    min_feature_rank: NonNegative = 1.05
    max_drift: Annotated[float, Field(ge=0, le=1)] = 1.0


class Cluster(Section):
    """Reduced features -> pseudo-labels: see `deepcluster.clustering`."""

    method: Literal["kmeans"] = "kmeans"
    backend: Literal["faiss", "sklearn", "minibatch"] = "faiss"
    k: Annotated[int, Field(ge=2)] = 10
    iterations: Count = 20
    restarts: Count = 1
    init: Literal["random", "k-means++"] = "random"
    spherical: bool = False
    points_per_centroid: Count | None = None
    warm_start: bool = False
    fail_on_collapse: bool = True
    collapse: Collapse = Field(default_factory=Collapse)


class Optimizer(Section):
    """One optimizer: of the backbone (`train.optimizer`) or, with momentum 0 by default, of the head (`train.head`)."""

    name: Literal["sgd", "adam"] = "sgd"
    lr: Positive = 0.05
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-5
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999


class Head(Optimizer):
    """The head's own optimizer; fresh each epoch and without momentum, as in the paper's code."""

    momentum: Fraction = 0.0


class Train(Section):
    """One epoch on the pseudo-labels: see `deepcluster.training`."""

    batch_size: Annotated[int, Field(ge=2)] = 256
    epoch_size: Positive = 1.0
    loss: Literal["cross_entropy"] = "cross_entropy"
    contrastive: Literal["none"] = "none"
    precision: Precision = "fp32"
    compile: bool = False
    optimizer: Optimizer = Field(default_factory=Optimizer)
    head: Head = Field(default_factory=Head)


class Augment(Section):
    """Random geometry of the training images, drawn per image: see `deepcluster.augment`."""

    crop: bool = True
    crop_scale: Annotated[Range, AfterValidator(_at_most_one)] = (0.2, 1.0)
    crop_ratio: Range = (0.75, 4 / 3)
    flip: bool = True
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Fraction = 0.0
    zoom: Range = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0


class Evaluate(Section):
    """What is reported of the last backbone: see `deepcluster.evaluation`."""

    k: Annotated[int, Field(ge=2)] | None = None
    restarts: Count = 10
    gallery: Annotated[int, Field(ge=1, le=100)] = 10


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    epochs: Count = 10
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    extract: Extract = Field(default_factory=Extract)
    pca: Pca = Field(default_factory=Pca)
    cluster: Cluster = Field(default_factory=Cluster)
    train: Train = Field(default_factory=Train)
    augment: Augment = Field(default_factory=Augment)
    evaluate: Evaluate = Field(default_factory=Evaluate)


def load_params(path: Path = PARAMS_FILE) -> Params:
    """The validated contents of `path`; ParamsError with every mistake, one a line, if there is any."""
    content = _read_yaml(path)
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        lines = [_describe(path, mistake) for mistake in error.errors()]
        raise ParamsError("\n".join(lines)) from None
    if params.cluster.spherical and params.cluster.backend != "faiss":
        raise ParamsError(f"{path}: cluster.spherical: needs cluster.backend faiss; got {params.cluster.backend!r}")
    return params


def as_yaml(params: Params) -> str:
    """The params with every default spelled out, as YAML."""
    text = StringIO()
    YAML(typ="safe").dump(params.model_dump(mode="json"), text)
    return text.getvalue()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run this in the project's folder, the one with dvc.yaml") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        raise ParamsError(f"{path}: empty; expected sections such as data, model, cluster")
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected sections such as data, model, cluster; got a {type(content).__name__}")
    return content


def _describe(path: Path, mistake: Any) -> str:
    """`params.yaml: cluster.k: must be >= 2; got 1` of one pydantic error."""
    location = [part for part in mistake["loc"] if not str(part).startswith(("function-", "constrained-"))]
    location = [part for part in location if part not in ("int", "float", "none")]
    if location and isinstance(location[-1], int):  # an element of a list: name the list
        location.pop()
    key = ".".join(str(part) for part in location)
    found = mistake["input"]
    if mistake["type"] == "extra_forbidden":
        parent, name = location[:-1], str(location[-1])
        return f"{path}: {key}: unknown key{nearest(name, _known_keys(parent))}"
    shown = list(found) if isinstance(found, tuple) else found
    return f"{path}: {key}: {_expected(mistake)}; got {shown!r}"


def _expected(mistake: Any) -> str:
    context = mistake.get("ctx", {})
    match mistake["type"]:
        case "greater_than_equal":
            return f"must be >= {context['ge']}"
        case "greater_than":
            return f"must be > {context['gt']}"
        case "less_than_equal":
            return f"must be <= {context['le']}"
        case "less_than":
            return f"must be < {context['lt']}"
        case "literal_error":
            return f"must be one of {context['expected']}{_suggest(mistake)}"
        case "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_type":
            return "must be a number"
        case "finite_number":
            return "must be finite"
        case "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be text"
        case "none_required":
            return "or must be null"
        case "model_type" | "dict_type":
            return "must be a section with keys of its own"
        case "tuple_type" | "missing" | "too_long" | "too_short":
            return "must be a list of two numbers"
        case "value_error":
            return str(context["error"])
        case _:
            return str(mistake["msg"])


def _suggest(mistake: Any) -> str:
    choices = [choice.strip(" '") for choice in mistake["ctx"]["expected"].replace(" or ", ", ").split(",")]
    return nearest(str(mistake["input"]), choices)


def _known_keys(location: list[Any]) -> list[str]:
    """The keys that the section at `location` knows."""
    model: Any = Params
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)

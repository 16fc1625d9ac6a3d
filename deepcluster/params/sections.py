"""The sections of params.yaml, frozen and typed; what each key means stands in params.yaml itself."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Arch = Literal[
    "convnet", "feedforward", "alexnet", "vgg16", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"
]
DataName = Literal[
    "digits", "mnist", "fashionmnist", "kmnist", "usps", "cifar10", "stl10", "gtsrb", "tinyimagenet", "folder"
]
Precision = Literal["fp32", "bf16"]
ClusterMethod = Literal["kmeans", "pic", "spectral"]


def _sequence_to_tuple(value: Any) -> Any:
    """YAML has lists only; a frozen section holds tuples."""
    return tuple(value) if isinstance(value, list) else value


def _writable(text: str) -> str:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("must be text that can be a name: without NUL and surrogates")
    return text


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("must be [low, high] with 0 < low <= high")
    return bounds


def _at_most_one(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("must not exceed 1, the image's whole area")
    return bounds


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if "" in names or len(set(names)) < len(names):
        raise ValueError("must be a list of different names")
    return names


def _numbers_once(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(numbers)) < len(numbers):
        raise ValueError("must be a list of different numbers")
    return numbers


Text = Annotated[str, AfterValidator(_writable)]
Range = Annotated[tuple[float, float], BeforeValidator(_sequence_to_tuple), AfterValidator(_ascending)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_sequence_to_tuple), AfterValidator(_each_once)]
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_sequence_to_tuple), AfterValidator(_numbers_once)]


class Section(BaseModel):
    """Base of all sections: immutable, no coercion ("1" is not a number), no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """Which images: see `deepcluster.datasets`."""

    name: DataName = "digits"
    root: Text = "data/raw"
    split: Text = "train"
    test_split: Text | None = None
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    grayscale: bool = False
    max_unreadable: Fraction = 0.0
    follow_links: bool = False

    def recorded(self, *, test_split: bool = True) -> dict[str, Any]:
        """The section as artifacts record it: `follow_links` only where it is on, so all others keep their bytes."""
        left_out = {"test_split": not test_split, "follow_links": not self.follow_links}
        return self.model_dump(exclude={name for name, out in left_out.items() if out})


class Model(Section):
    """The backbone and its fixed front end: see `deepcluster.models`."""

    arch: Arch = "convnet"
    sobel: bool = False
    grayscale: bool = False
    weights: Text | None = None


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

    min_effective_k: Share = 0.2
    max_largest_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_empty: Share = 0.5
    min_feature_rank: NonNegative = 1.05
    max_drift: Share = 1.0


class Pic(Section):
    """Power-iteration clustering, `cluster.method: pic`: see `deepcluster.clustering.pic`."""

    neighbours: Count = 5
    sigma: Positive = 0.2
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001


class Spectral(Section):
    """Spectral clustering, `cluster.method` or `refine.method: spectral`: see `deepcluster.clustering.spectral`."""

    neighbours: Count = 10
    extra_vectors: Annotated[int, Field(ge=0)] = 3


class Cluster(Section):
    """Reduced features -> pseudo-labels: see `deepcluster.clustering`."""

    method: ClusterMethod = "kmeans"
    backend: Literal["faiss", "sklearn", "minibatch"] = "faiss"
    k: Annotated[int, Field(ge=2)] = 10
    iterations: Count = 20
    restarts: Count = 1
    init: Literal["random", "k-means++"] = "random"
    spherical: bool = False
    points_per_centroid: Count | None = None
    clusterings: Count = 1
    warm_start: bool = False
    match_labels: bool = False
    pic: Pic = Field(default_factory=Pic)
    spectral: Spectral = Field(default_factory=Spectral)
    fail_on_collapse: bool = True
    collapse: Collapse = Field(default_factory=Collapse)


class Refine(Section):
    """Other pseudo-labels in the later epochs: see `deepcluster.params.refine`."""

    after: Count | None = None
    method: Literal["kmeans", "spectral"] = "kmeans"
    k: Annotated[int, Field(ge=2)] | None = None
    whiten: bool = False
    restarts: Count = 10


class Optimizer(Section):
    """One optimizer: of the backbone (`train.optimizer`) or, with momentum 0 by default, of the head (`train.head`)."""

    name: Literal["sgd", "adam", "lars"] = "sgd"
    lr: Positive = 0.05
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-5
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999


class Head(Optimizer):
    """The head and its own optimizer; both fresh each epoch, and without momentum, as in the paper's code."""

    momentum: Fraction = 0.0
    reset: bool = True
    carry_optimizer: bool = False


class Schedule(Section):
    """How the learning rates change: see `deepcluster.schedules`. Lengths are in epochs."""

    name: Literal["constant", "step", "cosine"] = "constant"
    head: bool = True
    warmup: NonNegative = 0.0
    every: Count = 30
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    epochs: Count | None = None
    floor: Fraction = 0.0


class Contrastive(Section):
    """A second loss, on the features: see `deepcluster.contrastive`."""

    strategy: Literal["none", "pseudo_labels", "two_views"] = "none"
    weight: NonNegative = 1.0
    label_weight: NonNegative = 1.0
    temperature: Positive = 0.5
    margin: Positive = 1.0
    projection: Count | None = None


class V2(Section):
    """DeepCluster-v2, `train.method: deepcluster_v2`: see `deepcluster.training_v2`.

    hidden, outputs: of the projector. global_crops: as `augment` says; small_crops: of small_scale of the area.
    small_size: their side in pixels; null: that of the images. bank: which projections the next epoch clusters.
    """

    hidden: Count = 2048
    outputs: Annotated[int, Field(ge=2)] = 128
    temperature: Positive = 0.1
    global_crops: Count = 2
    small_crops: Annotated[int, Field(ge=0)] = 6
    small_size: Count | None = None
    small_scale: Annotated[Range, AfterValidator(_at_most_one)] = (0.05, 0.14)
    bank: Literal["first", "mean"] = "first"


class Train(Section):
    """One epoch on the pseudo-labels: see `deepcluster.training`, and `deepcluster.training_v2`."""

    method: Literal["deepcluster", "deepcluster_v2"] = "deepcluster"
    batch_size: Annotated[int, Field(ge=2)] = 256
    epoch_size: Positive = 1.0
    keep: Annotated[float, Field(gt=0, le=1)] = 1.0
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    loss: Literal["cross_entropy", "mse", "l1", "l2"] = "cross_entropy"
    contrastive: Contrastive = Field(default_factory=Contrastive)
    v2: V2 = Field(default_factory=V2)
    clip_norm: Positive | None = None
    freeze: Names = ()
    schedule: Schedule = Field(default_factory=Schedule)
    precision: Precision = "fp32"
    compile: bool = False
    sync_batch_norm: bool = True
    optimizer: Optimizer = Field(default_factory=Optimizer)
    head: Head = Field(default_factory=Head)


class Augment(Section):
    """Random transforms of the training images, drawn per image: see `deepcluster.augment`."""

    crop: bool = True
    crop_scale: Annotated[Range, AfterValidator(_at_most_one)] = (0.2, 1.0)
    crop_ratio: Range = (0.75, 4 / 3)
    flip: bool | None = None
    vertical_flip: bool = False
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Fraction = 0.0
    zoom: Range = (1.0, 1.0)
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    grayscale: Share = 0.0
    autocontrast: Share = 0.0
    equalize: Share = 0.0
    padding: Literal["zeros", "border", "reflection"] | None = None


class Evaluate(Section):
    """What is reported of the last backbone: see `deepcluster.evaluation`."""

    k: Annotated[int, Field(ge=2)] | None = None
    restarts: Count = 20
    knn: Counts = (20, 200)
    probe: Literal["last", "blocks", "none"] = "last"
    retrieval: bool = True
    overclustering: Annotated[int, Field(ge=0)] = 10
    gallery: Annotated[int, Field(ge=1, le=100)] = 10


class Report(Section):
    """What the report shows: see `deepcluster.inspection`. Nothing else reads this."""

    map: Literal["pca", "tsne", "umap"] = "pca"
    timings: bool = False


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    epochs: Count = 10
    deterministic: bool = False
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    extract: Extract = Field(default_factory=Extract)
    pca: Pca = Field(default_factory=Pca)
    cluster: Cluster = Field(default_factory=Cluster)
    refine: Refine = Field(default_factory=Refine)
    train: Train = Field(default_factory=Train)
    augment: Augment = Field(default_factory=Augment)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    report: Report = Field(default_factory=Report)

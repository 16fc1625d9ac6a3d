"""DeepCluster with scikit-learn's manners, in memory, by the functions that the stages run.

`from deepcluster import DeepCluster`. Shapes: N images, D features, K clusters.
"""

import sys
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from deepcluster import artifacts
from deepcluster.artifacts.provenance import Provenance
from deepcluster.augment import Augmentation
from deepcluster.checkpoint import BackboneDescription
from deepcluster.clustering.kmeans import Clustering
from deepcluster.datasets.load import channel_statistics
from deepcluster.evaluation.baselines import final_clusters
from deepcluster.models.build import Backbone
from deepcluster.params import Arch
from deepcluster.schedules import LearningRate
from deepcluster.seeding import derive_seed
from deepcluster.training import OptimizerSettings, StepResult
from deepcluster.using import inmemory
from deepcluster.using.arrays import as_images
from deepcluster.using.bundle import (
    Bundle,
    Clusters,
    Features,
    Preprocessing,
    Reduction,
    outlier_thresholds,
    write_bundle,
)
from deepcluster.using.nearest import Placement, features_of, place, reduced
from stages.common import device as default_device
from stages.common import faiss_gpu

AMONG_EIGENVECTORS: dict[str, Any] = {"method": "spectral", "iterations": 50, "init": "k-means++", "restarts": 10}
REFINED: dict[str, Any] = {"refined": True, "whiten": False, "init": "k-means++", "restarts": 10}
AUGMENTATION = Augmentation(rotation=12.0, translate=0.1, zoom=(0.85, 1.15), shear=8.0, padding="reflection")


class DeepCluster(ClusterMixin, TransformerMixin, ClassNamePrefixFeaturesOutMixin, BaseEstimator):  # type: ignore[misc]
    """Learn features of images without labels, and cluster them (Caron et al. 2018).

    images, wherever they are asked for: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3, or a list of PIL
    images or of paths, which needs `image_size`.

    Parameters
        k: clusters of the result. clusters: of the pseudo-labels that are trained on; None: 3 k.
        refine: after this share of the epochs training is on k clusters of unwhitened features; None: never.
        method: how pseudo-labels are found, "kmeans" or "spectral": clusters of any shape, of the graph of nearest
        neighbours. For spectral ones of MNIST, `refine` after the first of `epochs` did best (docs/results.md).
        epochs; seed: same seed, data, machine and versions, same result.
        arch, sobel: the backbone, as `model` in params.yaml. image_size: side to scale to; None: as the arrays are.
        grayscale: lists are read as grey. components: of the PCA; None: at most 64, as many as N and D allow.
        lr, head_lr, momentum, weight_decay: SGD of the backbone; the head's has no momentum. schedule: of both rates.
        epoch_size: images an epoch, as a multiple of N. batch_size: of training; extract_batch_size: of features.
        augmentation: `deepcluster.augment.Augmentation`; None: small turns, shifts, zooms and shears, no mirroring.
        restarts: the final k-means is the best of so many. device: "cpu", "cuda"; None: DEEPCLUSTER_DEVICE, or the GPU
        if there is one. verbose: a line an epoch on stderr.

    After `fit`
        labels_: int32 [N], the final clustering. cluster_centers_: float32 [K, D], in the space of `transform`.
        pseudo_labels_: int32 [N], of the last epoch. inertia_: sum of squared distances. history_: a dict an epoch.
        bundle_: what `transform` and `predict` use, and `write_bundle` writes. n_features_in_: C x S x S.
    """

    def __init__(
        self,
        k: int = 10,
        *,
        clusters: int | None = None,
        refine: float | None = 0.8,
        method: str = "kmeans",
        epochs: int = 20,
        arch: Arch = "convnet",
        sobel: bool = False,
        image_size: int | None = None,
        grayscale: bool = False,
        components: int | None = None,
        lr: float = 0.05,
        head_lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        schedule: str = "cosine",
        epoch_size: float = 4.0,
        batch_size: int = 128,
        extract_batch_size: int = 512,
        augmentation: Augmentation | None = None,
        restarts: int = 20,
        seed: int = 1,
        device: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.k = k
        self.clusters = clusters
        self.refine = refine
        self.method = method
        self.epochs = epochs
        self.arch = arch
        self.sobel = sobel
        self.image_size = image_size
        self.grayscale = grayscale
        self.components = components
        self.lr = lr
        self.head_lr = head_lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.epoch_size = epoch_size
        self.batch_size = batch_size
        self.extract_batch_size = extract_batch_size
        self.augmentation = augmentation
        self.restarts = restarts
        self.seed = seed
        self.device = device
        self.verbose = verbose

    def fit(self, images: Any, y: object = None) -> Self:
        """Train on the images and cluster them; `y` is not looked at.

        ValueError or TypeError for parameters and images that cannot be, CollapseError where clusters collapse,
        NumericsError where spectral clusters cannot be told apart; these two name settings as params.yaml does.
        """
        self._check()
        images_NCHW = as_images(images, image_size=self.image_size, grayscale=self.grayscale)
        count, channels, side, _ = images_NCHW.shape
        for name, wanted in (("k", self.k), ("clusters", self._clusters())):
            if wanted > count:
                raise ValueError(f"{name}: must be <= N = {count} images; got {wanted}")
        found = inmemory.Images(images_NCHW, *channel_statistics(images_NCHW))
        description = BackboneDescription(self.arch, channels, side, self.sobel)
        backbone = self._train(found, inmemory.initial_backbone(description, self.seed))
        features_ND = self._features(backbone, found)
        seed = derive_seed(self.seed, "evaluate", 0)
        final = final_clusters(features_ND, k=self.k, seed=seed, restarts=self.restarts, gpu=self._gpu())
        self.bundle_ = self._bundle(description, backbone, found, final)
        self.labels_, self.cluster_centers_ = final.labels_N, final.centroids_Kd
        self.inertia_ = float(final.distances_N.sum(dtype=np.float64))
        self.n_features_in_ = images_NCHW[0].size
        return self

    def transform(self, images: Any) -> NDArray[np.float32]:
        """Features of norm 1, float32 [N, D]: the last backbone's, L2-normalised, among which the clusters lie."""
        check_is_fitted(self)
        rows = features_of(self.bundle_, [self._like_training(images)], self._device())
        return np.concatenate(list(reduced(rows, self.bundle_.reduction)))

    def predict(self, images: Any) -> NDArray[np.int32]:
        """The cluster of each image, int32 [N]; of the images of `fit`, in their order, `labels_`."""
        return self.place(images).labels_N

    def place(self, images: Any) -> Placement:
        """Cluster, distance, second cluster and its distance, outlier flag of each image, as `assign` tells them."""
        check_is_fitted(self)
        return place(self.bundle_, [self._like_training(images)], self._device())

    def write_bundle(self, folder: str | Path, *, force: bool = False) -> None:
        """Write what `deepcluster assign` and `sort` take as --bundle; `force` replaces a bundle that is there."""
        check_is_fitted(self)
        artifacts.refuse_bundle_target(Path(folder), force=force)
        write_bundle(Path(folder), self.bundle_)

    @property
    def _n_features_out(self) -> int:
        return int(self.cluster_centers_.shape[1])

    def _train(self, images: inmemory.Images, backbone: Backbone) -> Backbone:
        """All epochs; leaves pseudo_labels_ and history_."""
        previous_N, state = None, inmemory.UNTRAINED
        after = self.epochs if self.refine is None else round(self.refine * self.epochs)
        self.history_: list[dict[str, float]] = []
        rate = LearningRate(self.schedule, epochs=self.epochs, floor=0.05)  # type: ignore[arg-type] # checked
        for epoch in range(1, self.epochs + 1):
            features_ND = self._features(backbone, images)
            components = min(64, *features_ND.shape) if self.components is None else self.components
            gpu, seed = self._gpu(), self.seed
            k, how = (self._clusters(), {}) if epoch <= after else (self.k, REFINED)
            how = how | (AMONG_EIGENVECTORS if self.method == "spectral" else {})
            found = inmemory.pseudo_labels(
                features_ND, epoch=epoch, seed=seed, k=k, components=components, previous_N=previous_N, gpu=gpu, **how
            )
            steps, state = inmemory.train(
                backbone,
                images,
                found.labels_N,
                state,
                epoch=epoch,
                seed=seed,
                k=k,
                epoch_size=self.epoch_size,
                batch_size=self.batch_size,
                augmentation=AUGMENTATION if self.augmentation is None else self.augmentation,
                optimizer=OptimizerSettings("sgd", self.lr, self.momentum, self.weight_decay),
                head_optimizer=OptimizerSettings("sgd", self.head_lr, 0.0, self.weight_decay),
                rate=rate,
                device=self._device(),
            )
            self._note(epoch, steps)
            previous_N = found.labels_N
        self.pseudo_labels_ = previous_N
        return backbone

    def _note(self, epoch: int, steps: list[StepResult]) -> None:
        images = sum(step.images for step in steps)
        means = {
            name: sum(getattr(step, name) * step.images for step in steps) / images for name in ("loss", "accuracy")
        }
        self.history_.append({"epoch": epoch} | means)
        if self.verbose:
            loss, accuracy = means["loss"], means["accuracy"]
            print(f"epoch {epoch}: loss {loss:.4f}, pseudo-label accuracy {accuracy:.3f}", file=sys.stderr)

    def _features(self, backbone: Backbone, images: inmemory.Images) -> NDArray[np.float32]:
        return inmemory.features(backbone, images, batch_size=self.extract_batch_size, device=self._device())

    def _bundle(
        self, description: BackboneDescription, backbone: Backbone, images: inmemory.Images, final: Clustering
    ) -> Bundle:
        count = len(images.images_NCHW)
        mean, std = tuple(images.mean), tuple(images.std)
        preprocessing = Preprocessing(description.image_size, description.channels, True, mean, std)
        distances_N = np.sqrt(final.distances_N.astype(np.float64))
        thresholds_K = outlier_thresholds(distances_N, final.labels_N, final.sizes_K)
        settings = {
            name: vars(value) if isinstance(value, Augmentation) else value for name, value in self.get_params().items()
        }
        origin = Provenance(count, "", seed=self.seed, params=settings).attributes("bundle")
        about = {
            "clustering": f"a clustering fitted in Python, after epoch {self.epochs}",
            "labels": "final",
            "epoch": self.epochs,
            "backbone_epoch": self.epochs,
            "provenance": {name: origin[name] for name in ("seed", "samples", "params", "packages")},
        }
        return Bundle(
            description,
            backbone,
            preprocessing,
            Features(min(self.extract_batch_size, count)),
            Reduction(),
            Clusters(final.centroids_Kd, final.sizes_K, thresholds_K),
            about,
        )

    def _like_training(self, images: Any) -> NDArray[np.uint8]:
        """Images of the size and channels of those of `fit`; arrays of another size only if `image_size` was given."""
        wanted = self.bundle_.preprocessing
        found = as_images(images, image_size=self.image_size, grayscale=wanted.channels == 1)
        shape = (wanted.channels, wanted.image_size, wanted.image_size)
        if found.shape[1:] != shape:
            raise ValueError(f"images must be {list(shape)} each, as in fit; got {list(found.shape[1:])}")
        return found

    def _clusters(self) -> int:
        return 3 * self.k if self.clusters is None else self.clusters

    def _device(self) -> torch.device:
        return default_device() if self.device is None else torch.device(self.device)

    def _gpu(self) -> bool | None:
        return faiss_gpu() if self.device is None else None if self._device().type == "cuda" else False

    def _check(self) -> None:
        """ValueError that lists every parameter that cannot be."""
        least = {"k": 2, "clusters": 2, "epochs": 1, "components": 1, "batch_size": 2, "extract_batch_size": 1}
        least |= {"restarts": 1, "image_size": 1, "seed": 0}
        problems = [
            f"{name}: must be an int >= {lowest}; got {value!r}"
            for name, lowest in least.items()
            if not isinstance(value := getattr(self, name), int | np.integer)
            or isinstance(value, bool)
            or value < lowest
            if not (value is None and name in ("clusters", "components", "image_size"))
        ]
        problems += [
            f"{name}: must be a number > 0; got {value!r}"
            for name in ("lr", "head_lr", "epoch_size")
            if not (isinstance(value := getattr(self, name), int | float) and value > 0)
        ]
        if self.refine is not None and not (isinstance(self.refine, int | float) and 0 < self.refine <= 1):
            problems.append(f"refine: must be None or a share of the epochs, > 0 and <= 1; got {self.refine!r}")
        choices = {"arch": get_args(Arch), "schedule": ("constant", "cosine"), "method": ("kmeans", "spectral")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                problems.append(f"{name}: must be one of {', '.join(known)}; got {getattr(self, name)!r}")
        if problems:
            raise ValueError("\n".join(problems))

"""Mistakes between keys that are each valid, and of the machine that they are for."""

from collections.abc import Iterator
from pathlib import Path

from deepcluster.params.data_defaults import GREY, flips
from deepcluster.params.refine import clustering_methods
from deepcluster.params.sections import Params


def contradictions(params: Params) -> Iterator[str]:
    """What is wrong between keys that are each valid."""
    cluster, head, schedule = params.cluster, params.train.head, params.train.schedule
    if cluster.spherical and cluster.backend != "faiss":
        yield f"cluster.spherical: needs cluster.backend faiss; got {cluster.backend!r}"
    if not head.reset and cluster.method == "pic":
        yield "train.head.reset: false is not for cluster.method pic, which finds another number of clusters each epoch"
    elif not head.reset and not cluster.match_labels:
        yield "train.head.reset: false needs cluster.match_labels: true, since cluster numbers permute between epochs"
    for key, on in (("spherical", cluster.spherical), ("warm_start", cluster.warm_start)):
        for section, method in clustering_methods(params).items():
            if on and method != "kmeans":
                yield f"cluster.{key}: is for {section}.method kmeans; got {method!r}"
    if head.carry_optimizer and cluster.method == "pic":
        yield "train.head.carry_optimizer: true is not for cluster.method pic, with which the head's size changes"
    if params.refine.after is not None:
        yield from (f"refine.after: needs {need}" for need in _needs_of_refining(params))
    for key, named in (("data.root", params.data.root), ("model.weights", params.model.weights)):
        if named and not _has_home(named):
            yield f"{key}: no home folder is known for the ~ that it begins with; got {named!r}"
    if params.data.test_split == params.data.split:
        yield f"data.test_split: must differ from data.split, which is trained on; got {params.data.split!r} for both"
    contrastive = params.train.contrastive
    if contrastive.strategy != "none" and contrastive.weight == contrastive.label_weight == 0:
        yield "train.contrastive.weight: weight and label_weight are both 0, so nothing would be trained on"
    if schedule.name == "cosine" and schedule.epochs is None:
        yield "train.schedule.epochs: must be given for a cosine schedule, usually the same as epochs; got null"
    if schedule.name == "cosine" and schedule.epochs is not None and schedule.warmup >= schedule.epochs:
        yield f"train.schedule.warmup: must be < train.schedule.epochs = {schedule.epochs}; got {schedule.warmup:g}"
    if contrastive.strategy == "two_views" and not _views_differ(params):
        yield (
            "train.contrastive.strategy: two_views needs an augmentation that is random, since both views of an image "
            "are identical without one; switch on augment.crop, rotation, translate or another"
        )
    if params.train.method == "deepcluster_v2":
        yield from (f"train.method: deepcluster_v2 needs {need}" for need in _needs_of_v2(params))
    elif cluster.clusterings > 1:
        yield (
            "cluster.clusterings: more than 1 needs train.method deepcluster_v2, since deepcluster has one head; "
            f"got {cluster.clusterings}"
        )


def _has_home(path: str) -> bool:
    """Whether a ~ at the beginning of a path can be told what it stands for."""
    try:
        Path(path).expanduser()
    except RuntimeError:
        return False
    return True


def _needs_of_v2(params: Params) -> Iterator[str]:
    cluster, train = params.cluster, params.train
    if params.pca.enabled:
        yield "pca.enabled: false, since the projections' own centroids are its last layer"
    if cluster.method != "kmeans":
        yield f"cluster.method kmeans; got {cluster.method!r}"
    elif not cluster.spherical:
        yield "cluster.spherical: true, since it compares projections by their cosine"
    if train.loss != "cross_entropy":
        yield f"train.loss cross_entropy; got {train.loss!r}"
    if train.contrastive.strategy != "none":
        yield f"train.contrastive.strategy none, as it has several crops anyway; got {train.contrastive.strategy!r}"
    if not train.head.reset:
        yield "train.head.reset: true, since its last layer is the centroids"
    if train.head.carry_optimizer:
        yield "train.head.carry_optimizer: false; its projector is trained by train.optimizer, whose state passes on"
    if train.keep < 1:
        yield f"train.keep: 1.0, since it trains on every image; got {train.keep:g}"
    if train.average is not None:
        yield f"train.average: null; got {train.average:g}"
    if params.refine.after is not None:
        yield f"refine.after: null, as its clusters are its last layer; got {params.refine.after}"
    if train.epoch_size < 1:
        yield f"train.epoch_size >= 1, since training projects every image for the next epoch; got {train.epoch_size:g}"


def _needs_of_refining(params: Params) -> Iterator[str]:
    """What is missing, or would not outlive another number of clusters."""
    head = params.train.head
    if params.refine.k is None:
        yield "refine.k, usually that of the final clustering; got null"
    if not head.reset or head.carry_optimizer:
        yield "train.head.reset: true and train.head.carry_optimizer: false, as the head has another size then"


def _views_differ(params: Params) -> bool:
    augment = params.augment
    strengths = (augment.rotation, augment.translate, augment.shear, augment.brightness, augment.contrast)
    coloured = (augment.saturation, augment.hue) if _coloured(params) else ()
    return (  # grayscale, autocontrast and equalize leave many an image as it is
        (augment.crop and (augment.crop_scale[0] < 1 or augment.crop_ratio[0] < augment.crop_ratio[1]))
        or flips(augment, params.data.name)
        or augment.vertical_flip
        or augment.zoom[0] < augment.zoom[1]
        or any(strength > 0 for strength in (*strengths, *coloured))
    )


def _coloured(params: Params) -> bool:
    return params.data.name not in GREY and not params.data.grayscale

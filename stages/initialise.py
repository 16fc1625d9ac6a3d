"""initialise: the untrained backbone, epoch 0."""

from typing import TYPE_CHECKING

from stages.common import main, open_images, stage

if TYPE_CHECKING:
    from deepcluster.checkpoint import BackboneDescription
    from deepcluster.models.build import Backbone
    from deepcluster.models.projector import Projector
    from deepcluster.params import Params


def initialise() -> None:
    """Build the backbone of epoch 0, from the seed or from `model.weights`.

    Reads data/dataset/images.zarr (for the number of channels and the size), params.yaml's section `model`, and of
    `train` what tells whether there is a projector, and its size. Writes data/epochs/0/checkpoint and
    data/history/0/clusters.zarr (labels -1: nothing is clustered yet).
    """
    from pathlib import Path

    import numpy as np

    from deepcluster import artifacts, layout
    from deepcluster.checkpoint import BackboneDescription, load_weights, save_checkpoint
    from deepcluster.errors import UserError
    from deepcluster.interop import read_foreign_weights
    from deepcluster.seeding import seed_torch

    with stage("initialise") as params:
        images, model = open_images(), params.model
        _, channels, size, _ = images.shape("images")
        description = BackboneDescription(model.arch, channels, size, model.sobel, model.grayscale)
        seed_torch(params.seed, "backbone", 0)
        backbone = description.build()
        used = model.model_dump()
        if model.weights is not None:
            path = Path(model.weights).expanduser()
            if path.resolve().is_relative_to(layout.EPOCHS.resolve()):
                raise UserError(f"model.weights: {path} lies in {layout.EPOCHS}, where this run writes; copy it away")
            used["weights_sha256"] = artifacts.weights_sha256(path)
            load_weights(backbone, read_foreign_weights(path, description, backbone), path)
        _refuse_misfits(params, description, backbone, images.samples)
        projector = _projector(params, backbone.feature_dim)
        if projector:
            used |= {"projector": {"hidden": projector.hidden, "outputs": projector.outputs}}
        provenance = artifacts.Provenance(images.samples, images.ids, 0, params.seed, used)
        save_checkpoint(layout.checkpoint(0), description, backbone, provenance, projector=projector)
        with artifacts.write_store(layout.clusters(0), "clusters", provenance) as store:
            store.array("labels", np.full(images.samples, -1, np.int32), ("sample",))
        weights = sum(parameter.numel() for parameter in backbone.parameters())
        print(f"{model.arch}: {weights:,} weights, {backbone.feature_dim} features")


def _projector(params: "Params", feature_dim: int) -> "Projector | None":
    from deepcluster.models.projector import Projector
    from deepcluster.seeding import seed_torch

    if params.train.method != "deepcluster_v2":
        return None
    seed_torch(params.seed, "head", 0)
    return Projector(feature_dim, hidden=params.train.v2.hidden, outputs=params.train.v2.outputs)


def _refuse_misfits(params: "Params", description: "BackboneDescription", backbone: "Backbone", count: int) -> None:
    """Before the first long stage: what later ones would refuse."""
    from deepcluster.errors import ParamsError
    from deepcluster.models.freezing import weights_of_parts
    from deepcluster.models.sizes import refuse_small_crops
    from deepcluster.params import misfits

    if found := list(misfits(params, images=count, features=backbone.feature_dim)):
        raise ParamsError("\n".join(found))
    weights_of_parts(backbone, params.train.freeze)
    if params.train.method == "deepcluster_v2" and params.train.v2.small_crops:
        made_for = {name: getattr(description, name) for name in ("arch", "channels", "image_size")}
        refuse_small_crops(params.train.v2.small_size, description.build, **made_for)


if __name__ == "__main__":
    main(initialise)

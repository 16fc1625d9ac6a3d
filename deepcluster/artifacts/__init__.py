"""Artifacts on disk: zarr stores and checkpoints, with provenance, checksums and atomic publish.

The only package that touches zarr and safetensors. The attributes of every artifact say what it is:

    schema, version   kind of artifact and its layout's version
    epoch             epoch it belongs to (absent for the data set)
    samples, ids      N, and the sha256 over the sample ids: an array of another data set or order is refused
    params, seed      what it was made with
    packages          versions of the packages that made it
"""

from deepcluster.artifacts.bundle_files import (
    BundleFiles,
    damaged_bundle,
    read_bundle_files,
    refuse_bundle_target,
    write_bundle_files,
)
from deepcluster.artifacts.differences import Difference, differences
from deepcluster.artifacts.facts import ArrayFacts, array_facts, disk_usage
from deepcluster.artifacts.flat_files import is_whole, write_flat
from deepcluster.artifacts.intact import keep_intact
from deepcluster.artifacts.json_files import read_json, read_result, text_sha256, write_json
from deepcluster.artifacts.opening import open_store
from deepcluster.artifacts.progress_files import read_progress, write_progress
from deepcluster.artifacts.provenance import Provenance, damaged, ids_hash, missing, reading
from deepcluster.artifacts.publish import publishing, remove, remove_leavings, write_text
from deepcluster.artifacts.remote import Remote, elsewhere
from deepcluster.artifacts.remote_store import receipt
from deepcluster.artifacts.safetensors_files import (
    CheckpointFiles,
    checkpoint_params,
    read_bank,
    read_checkpoint,
    write_checkpoint,
)
from deepcluster.artifacts.shards import Array, PlainRows, ZarrRows, plain_rows
from deepcluster.artifacts.store import Store, StoreWriter, continue_store, shard_count, write_rows, write_store
from deepcluster.artifacts.uploading import Sent, plan_upload, send
from deepcluster.artifacts.weight_files import WeightFile, read_weight_file, weights_sha256, write_weight_file

__all__ = [
    "Array",
    "ArrayFacts",
    "BundleFiles",
    "CheckpointFiles",
    "Difference",
    "PlainRows",
    "Provenance",
    "Remote",
    "Sent",
    "Store",
    "StoreWriter",
    "WeightFile",
    "ZarrRows",
    "array_facts",
    "checkpoint_params",
    "continue_store",
    "damaged",
    "damaged_bundle",
    "differences",
    "disk_usage",
    "elsewhere",
    "ids_hash",
    "is_whole",
    "keep_intact",
    "missing",
    "open_store",
    "plain_rows",
    "plan_upload",
    "publishing",
    "read_bank",
    "read_bundle_files",
    "read_checkpoint",
    "read_json",
    "read_progress",
    "read_result",
    "read_weight_file",
    "reading",
    "receipt",
    "refuse_bundle_target",
    "remove",
    "remove_leavings",
    "send",
    "shard_count",
    "text_sha256",
    "weights_sha256",
    "write_bundle_files",
    "write_checkpoint",
    "write_flat",
    "write_json",
    "write_progress",
    "write_rows",
    "write_store",
    "write_text",
    "write_weight_file",
]

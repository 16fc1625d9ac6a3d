"""docs/coming-from.md: no flag of the earlier program is missing, and what it names exists and can be set."""

import re
import shlex
from collections import Counter
from itertools import pairwise

import pytest
from conftest import CHECKOUT

from deepcluster.errors import ParamsError
from deepcluster.params import Params
from deepcluster.params.edit import edited, leaves

PAGE = (CHECKOUT / "docs/coming-from.md").read_text(encoding="utf-8")
SHIPPED = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
# fmt: off
FLAGS = [
    "--arch", "--input_dim", "--num_classes", "--sobel", "--grayscale", "--requires_grad", "--epochs", "--dataset",
    "--data_dir", "--ds_train", "--ds_split", "--batch_size", "--optimizer", "--lr", "--momentum", "--weight_decay",
    "--beta1", "--beta2", "--param_requires_grad", "--reassign_optimizer_tl", "--optimizer_tl", "--lr_tl",
    "--momentum_tl", "--weight_decay_tl", "--beta1_tl", "--beta2_tl", "--loss_fn", "--pca", "--pca_method",
    "--pca_reduction", "--pca_whitening", "--reassign_clustering", "--clustering", "--metrics", "--metrics_file",
    "--metrics_dir", "--checkpoint", "--checkpoint_file", "--verbose", "--seed", "--contrastive_strategy_1",
    "--contrastive_strategy_2", "--remove_head", "--augmentation_resize", "--augmentation_random_crop",
    "--augmentation_random_rotation", "--augmentation_random_horizontal_flip",
    "--augmentation_random_vertical_flip", "--augmentation_color_jitter", "--augmentation_random_autocontrast",
    "--augmentation_random_equalize",
]
# fmt: on
VALUES = {
    "--arch": "FeedForward AlexNet VGG16 ResNet18 ResNet34 ResNet50 ResNet101 ResNet152",
    "--dataset": "CIFAR10 MNIST FashionMNIST KMNIST USPS tinyimagenet STL10 GTSRB",
    "--ds_split": "train test unlabeled train+unlabeled val",
    "--optimizer": "SGD Adam",
    "--optimizer_tl": "SGD Adam",
    "--loss_fn": "CrossEntropy MSE L1 L2",
    "--pca_method": "sklearn faiss",
    "--clustering": "sklearn faiss",
}
# there is nothing to set, because it is always done or does nothing
WITHOUT_PARAM = {"--requires_grad", "--metrics", "--metrics_file", "--metrics_dir", "--checkpoint", "--verbose"}


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def overrides(row: list[str]) -> list[str]:
    return [name for name in quoted(row[2]) if "=" in name]


FLAG_ROWS, VALUE_ROWS = table("Flags"), table("Values")


def test_every_flag_has_one_row():
    assert len(FLAGS) == 51
    assert Counter(quoted(row[0])[0] for row in FLAG_ROWS) == Counter(FLAGS)


def test_every_row_is_complete():
    assert {len(row) for row in FLAG_ROWS + VALUE_ROWS} == {4}
    assert [row[0] for row in FLAG_ROWS if not row[1] or not row[2]] == []


def test_every_value_has_one_row():
    named = Counter((quoted(row[0])[0], quoted(row[1])[0]) for row in VALUE_ROWS)
    assert named == Counter((flag, value) for flag, values in VALUES.items() for value in values.split())


def test_every_flag_with_an_effect_has_a_param():
    assert {quoted(row[0])[0] for row in FLAG_ROWS if row[2] == "none"} == WITHOUT_PARAM
    assert all(overrides(row) for row in FLAG_ROWS if row[2] != "none")


def test_every_param_named_anywhere_on_the_page_exists():
    known = set(leaves())
    names = {token.partition("=")[0] for token in quoted(re.sub(r"```.+?```", "", PAGE, flags=re.DOTALL))}
    sections = "|".join(name for name in Params.model_fields)
    named = {name for name in names if re.fullmatch(rf"({sections})(\.\w+)+|seed|epochs", name)}
    assert len(named) > 45
    assert sorted(named - known) == []


@pytest.mark.parametrize("row", FLAG_ROWS + VALUE_ROWS, ids=lambda row: " ".join(quoted(row[0] + row[1])[:2]))
def test_its_overrides_can_be_set_with_s(row):
    text, changes = edited(SHIPPED, overrides(row))
    assert [change.key for change in changes] == [override.partition("=")[0] for override in overrides(row)]
    assert text != SHIPPED or all(str(change).endswith(" already") for change in changes)


def test_a_head_that_is_kept_needs_what_the_page_says():
    with pytest.raises(ParamsError, match=r"cluster\.match_labels"):
        edited(SHIPPED, ["train.head.reset=false"])
    with pytest.raises(ParamsError, match=r"refine\.after: needs train\.head\.reset: true"):
        edited(SHIPPED, ["train.head.reset=false", "cluster.match_labels=true"])
    edited(SHIPPED, ["train.head.reset=false", "cluster.match_labels=true", "refine.after=null"])


def test_the_example_uses_real_flags_and_valid_overrides():
    then, now = re.findall(r"```console\n(.+?)```", PAGE, flags=re.DOTALL)
    assert set(re.findall(r"--\w+", then)) <= set(FLAGS)
    words = shlex.split(now.replace("\\\n", " "))
    settings = [value for option, value in pairwise(words) if option == "-S"]
    assert len(settings) > 20
    _, changes = edited(SHIPPED, settings)
    assert "alexnet" in [change.after for change in changes]


def test_the_defaults_are_those_that_the_page_names():
    from deepcluster.params import load_params

    found = load_params(CHECKOUT / "params.yaml")
    assert found.data.split == "train"
    assert found.train.head.momentum == 0
    assert found.train.optimizer.weight_decay == found.train.head.weight_decay == 1e-4
    assert (found.train.head.reset, found.train.head.carry_optimizer, found.cluster.warm_start) == (True, False, False)
    assert (found.pca.enabled, found.pca.whiten, found.pca.components, found.pca.backend) == (
        True,
        True,
        64,
        "streaming",
    )
    assert (found.data.name, found.model.arch, found.augment.rotation, found.augment.flip) == (
        "digits",
        "convnet",
        12,
        None,
    )
    assert found.train.contrastive.temperature == 0.5

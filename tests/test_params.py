"""params.yaml: every mistake at once, each naming file, key, expected and found."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepcluster.errors import ParamsError
from deepcluster.params import Params, as_yaml, load_params


@pytest.fixture
def load(tmp_path):
    """Validate a text as params.yaml."""

    def load_text(text):
        path = tmp_path / "params.yaml"
        path.write_text(text, encoding="utf-8")
        return load_params(path)

    return load_text


def mistakes(load, text):
    with pytest.raises(ParamsError) as caught:
        load(text)
    return [line.split("params.yaml: ", 1)[1] for line in str(caught.value).splitlines()]


def test_the_shipped_file_is_valid_and_names_every_key(request):
    shipped = load_params(request.config.rootpath / "params.yaml")
    from ruamel.yaml import YAML

    written = YAML(typ="safe").load((request.config.rootpath / "params.yaml").read_text(encoding="utf-8"))

    def keys(tree, prefix=""):
        return {
            name
            for key, value in tree.items()
            for name in ({f"{prefix}{key}"} | (keys(value, f"{prefix}{key}.") if isinstance(value, dict) else set()))
        }

    assert keys(written) == keys(shipped.model_dump())


def test_exponents_without_a_dot_are_numbers(load):
    assert load("train: {optimizer: {lr: 1e-5}}").train.optimizer.lr == 1e-5
    assert load("train: {optimizer: {lr: 1}}").train.optimizer.lr == 1.0


def test_every_mistake_is_reported_at_once(load):
    text = """
epochs: "3"
trian: {}
data: {image_size: big}
model: {arch: alexnett}
cluster: {k: 1}
pca: 3
augment: {zoom: [2, 1], crop_scale: [1]}
train: {epoch_size: .inf, optimizer: {mometum: 0.5}}
"""
    assert mistakes(load, text) == [
        "epochs: must be a whole number; got '3'",
        "data.image_size: must be a whole number; got 'big'",
        "model.arch: must be one of 'convnet', 'feedforward', 'alexnet', 'vgg16', 'resnet18', 'resnet34', 'resnet50', "
        "'resnet101' or 'resnet152'; did you mean 'alexnet'?; got 'alexnett'",
        "pca: must be a section with keys of its own; got 3",
        "cluster.k: must be >= 2; got 1",
        "train.epoch_size: must be finite; got inf",
        "train.optimizer.mometum: unknown key; did you mean 'momentum'?",
        "augment.crop_scale: must be a list of two numbers; got [1]",
        "augment.zoom: must be [low, high] with 0 < low <= high; got [2, 1]",
        "trian: unknown key; did you mean 'train'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; expected sections such as data, model, cluster"),
        ("- 1", "expected sections such as data, model, cluster; got a list"),
        ("a: b: c", "not YAML: mapping values are not allowed in this context"),
        ("seed: 1\nseed: 2", "not YAML: while constructing a mapping"),
    ],
)
def test_what_is_no_mapping_is_refused(load, text, message):
    assert mistakes(load, text)[0].startswith(message)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ParamsError, match=r"params\.yaml: not found; run this in the project's folder"):
        load_params(tmp_path / "params.yaml")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParamsError, match="not UTF-8 text"):
        load_params(path)


def test_sections_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        Params().cluster.k = 3  # type: ignore[misc]


def test_yaml_round_trip(load):
    params = Params()
    assert load(as_yaml(params)) == params


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
sections = st.dictionaries(st.sampled_from([*Params.model_fields, "other"]), plain, max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sections)
def test_any_yaml_is_valid_or_a_params_error(load, tree):
    import io

    from ruamel.yaml import YAML

    text = io.StringIO()
    YAML(typ="safe").dump(tree, text)
    try:
        assert isinstance(load(text.getvalue()), Params)
    except ParamsError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cluster: {spherical: true, backend: sklearn}",
            "cluster.spherical: needs cluster.backend faiss; got 'sklearn'",
        ),
        ("cluster: {collapse: {max_empty: 2.0}}", "cluster.collapse.max_empty: must be <= 1.0; got 2.0"),
        (
            "cluster: {collapse: {min_rank: 2.0}}",
            "cluster.collapse.min_rank: unknown key; did you mean 'min_feature_rank'?",
        ),
        ("cluster: {points_per_centroid: 0}", "cluster.points_per_centroid: must be >= 1; got 0"),
        (
            "cluster: {init: kmeans++}",
            "cluster.init: must be one of 'random' or 'k-means++'; did you mean 'k-means++'?",
        ),
    ],
)
def test_mistakes_in_the_settings_of_clustering(tmp_path, text, expected):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


STILL = "rotation: 0.0, translate: 0.0, zoom: [1.0, 1.0], shear: 0.0, crop: false"
VIEWS = "train: {contrastive: {strategy: two_views}}"
IDENTICAL = (
    "train.contrastive.strategy: two_views needs an augmentation that is random, since both views of an image are "
    "identical without one; switch on augment.crop, rotation, translate or another"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train: {head: {reset: false}}",
            "train.head.reset: false needs cluster.match_labels: true, since cluster numbers permute between epochs",
        ),
        (
            "cluster: {method: pic, match_labels: true}\ntrain: {head: {reset: false}}",
            "train.head.reset: false is not for cluster.method pic, which finds another number of clusters each epoch",
        ),
        (
            "cluster: {method: pic}\ntrain: {head: {carry_optimizer: true}}",
            "train.head.carry_optimizer: true is not for cluster.method pic, with which the head's size changes",
        ),
        ("refine: {after: 3}", "refine.after: needs refine.k, usually that of the final clustering; got null"),
        (
            "refine: {after: 3, k: 5}\ntrain: {head: {carry_optimizer: true}}",
            "refine.after: needs train.head.reset: true and train.head.carry_optimizer: false, as the head has another "
            "size then",
        ),
        (
            "cluster: {method: pic, spherical: true}",
            "cluster.spherical: is for cluster.method kmeans; got 'pic'",
        ),
        (
            "train: {schedule: {name: cosine}}",
            "train.schedule.epochs: must be given for a cosine schedule, usually the same as epochs; got null",
        ),
        (
            "train: {schedule: {name: cosine, epochs: 5, warmup: 5}}",
            "train.schedule.warmup: must be < train.schedule.epochs = 5; got 5",
        ),
        (
            "train: {contrastive: {strategy: pseudo_labels, weight: 0, label_weight: 0}}",
            "train.contrastive.weight: weight and label_weight are both 0, so nothing would be trained on",
        ),
        (f"data: {{name: digits}}\naugment: {{{STILL}}}\n{VIEWS}", IDENTICAL),
        (
            f"data: {{name: folder}}\naugment: {{flip: false, equalize: 0.5, autocontrast: 0.5, {STILL}}}\n{VIEWS}",
            IDENTICAL,
        ),
        (f"data: {{name: mnist}}\naugment: {{saturation: 0.5, hue: 0.1, {STILL}}}\n{VIEWS}", IDENTICAL),
        (
            f"data: {{name: digits}}\naugment: {{{STILL}, crop_scale: [1, 1], crop_ratio: [1, 1]}}\n{VIEWS}".replace(
                "crop: false", "crop: true"
            ),
            IDENTICAL,
        ),
        ("cluster: {method: pic, warm_start: true}", "cluster.warm_start: is for cluster.method kmeans; got 'pic'"),
        (
            "cluster: {clusterings: 3}",
            "cluster.clusterings: more than 1 needs train.method deepcluster_v2, since deepcluster has one head; got 3",
        ),
        (
            "train: {method: deepcluster2}",
            "train.method: must be one of 'deepcluster' or 'deepcluster_v2'; did you mean 'deepcluster'?; "
            "got 'deepcluster2'",
        ),
        (
            "train: {v2: {small_scale: [0.5, 1.5]}}",
            "train.v2.small_scale: must not exceed 1, the image's whole area; got [0.5, 1.5]",
        ),
        ("train: {freeze: [1]}", "train.freeze: must be a list of names; got 1"),
        ("train: {freeze: body}", "train.freeze: must be a list of names; got 'body'"),
        ("train: {freeze: [a, a]}", "train.freeze: must be a list of different names; got ['a', 'a']"),
        ("train: {contrastive: none}", "train.contrastive: must be a section with keys of its own; got 'none'"),
    ],
)
def test_keys_that_contradict_each_other(load, text, expected):
    assert mistakes(load, text) == [expected]


@pytest.mark.parametrize(
    "augment",
    ["flip: true", "vertical_flip: true", "brightness: 0.1", "contrast: 0.1"],
)
def test_one_random_transform_is_enough_for_two_views(load, augment):
    params = load(f"data: {{name: digits}}\naugment: {{{augment}, {STILL}}}\n{VIEWS}")
    assert params.train.contrastive.strategy == "two_views"


def test_what_is_not_used_contradicts_nothing(load):
    text = "train: {contrastive: {weight: 0, label_weight: 0}, schedule: {epochs: 5, warmup: 5}}"
    assert load(text).train.schedule.warmup == 5


def test_all_that_deepcluster_v2_does_without_is_said_at_once(load):
    text = """
pca: {enabled: true}
cluster: {spherical: false, clusterings: 3, match_labels: true}
train:
  method: deepcluster_v2
  loss: mse
  epoch_size: 0.5
  contrastive: {strategy: pseudo_labels}
  head: {reset: false, carry_optimizer: true}
"""
    needs = [
        "pca.enabled: false, since the projections' own centroids are its last layer",
        "cluster.spherical: true, since it compares projections by their cosine",
        "train.loss cross_entropy; got 'mse'",
        "train.contrastive.strategy none, as it has several crops anyway; got 'pseudo_labels'",
        "train.head.reset: true, since its last layer is the centroids",
        "train.head.carry_optimizer: false; its projector is trained by train.optimizer, whose state passes on",
        "train.epoch_size >= 1, since training projects every image for the next epoch; got 0.5",
    ]
    assert mistakes(load, text) == [f"train.method: deepcluster_v2 needs {need}" for need in needs]


def test_deepcluster_v2_with_power_iteration_clustering(load):
    text = "pca: {enabled: false}\ncluster: {method: pic}\ntrain: {method: deepcluster_v2}"
    assert mistakes(load, text) == ["train.method: deepcluster_v2 needs cluster.method kmeans; got 'pic'"]
    text = text.replace("pic", "spectral")
    assert mistakes(load, text) == ["train.method: deepcluster_v2 needs cluster.method kmeans; got 'spectral'"]


def test_deepcluster_v2_with_what_it_needs(load):
    text = (
        "pca: {enabled: false}\ncluster: {spherical: true, clusterings: 3, warm_start: true, match_labels: true}\n"
        "train: {method: deepcluster_v2, head: {lr: 1.0}, contrastive: {weight: 0.0}, optimizer: {name: lars}}"
    )
    assert load(text).train.v2.global_crops == 2


@pytest.mark.parametrize("key", ["data.root", "model.weights"])
def test_a_home_folder_that_nobody_has(load, key):
    section, name = key.split(".")
    with pytest.raises(ParamsError, match=rf"{key}: no home folder is known .*; got '~nosuchuser/x'$"):
        load(f"{section}: {{{name}: ~nosuchuser/x}}")


def test_several_contradictions_are_said_at_once(load):
    text = "train: {schedule: {name: cosine}, head: {reset: false}}"
    assert [line.partition(":")[0] for line in mistakes(load, text)] == ["train.head.reset", "train.schedule.epochs"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1: 2", "keys must be words; got 1"),
        ("cluster: {pic: {2.5: 1}}", "cluster.pic: keys must be words; got 2.5"),
        ("none: 1", "none: unknown key"),  # words that pydantic's own places have, too
        ("cluster: {int: 1}", "cluster.int: unknown key; did you mean 'init'?"),
        ("'': 1", "'': unknown key"),
        ('cluster: {"a\\nb": 1}', "cluster.'a\\nb': unknown key"),
        ("data: {root: 2001-99-99}", "not YAML: month must be in 1..12"),
        (
            'data: {root: "a\\0b"}',
            "data.root: must be text that can be a name: without NUL and surrogates; got 'a\\x00b'",
        ),
        ("seed: !!int x", "not YAML: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_odd_keys_and_values_that_yaml_itself_cannot_make(load, text, expected):
    assert mistakes(load, text) == [expected]

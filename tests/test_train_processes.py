"""train by several processes: the losses of one, step by step; one epoch, one checkpoint, one stop."""

import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit_params
from ranks import in_processes, stage_in_processes
from safetensors.numpy import load_file
from test_resuming import CHANGES, OUTPUTS, _settings, forget, in_step, kill, ready, ready_v2, run, run_v2, set_params  # noqa: F401 - fixtures
from test_training import ANYTHING, SGD, data, models, train

from deepcluster import distributed, layout
from deepcluster.augment import augment
from deepcluster.contrastive import Objective
from deepcluster.distributed import Process
from deepcluster.errors import LostProcessError
from deepcluster.models.build import build_backbone
from deepcluster.models.heads import build_heads
from deepcluster.models.sync_batch_norm import SyncBatchNorm, synchronise
from deepcluster.training import build_optimizer
from deepcluster.training_parts import part_of
from stages.train import train as stage

CPU = torch.device("cpu")
IMAGES, LABELS = data(200)
INDICES = np.random.default_rng(1).integers(0, 200, 195)  # batches of 16, the last of 19: then of 3 with 64


def losses(process, arch="convnet", projection=None, **settings):
    """Of an epoch; with them, the weights that it ends with."""
    torch.manual_seed(0)
    if arch == "convnet":
        backbone, heads = models()
    else:
        backbone = build_backbone(arch, channels=1, image_size=8, sobel=False, grayscale=False)
        heads = build_heads(backbone.feature_dim, 3)
    if projection:
        heads = build_heads(backbone.feature_dim, 3, projection=projection)
    optimizers = build_optimizer(backbone.parameters(), SGD), build_optimizer(heads.parameters(), SGD)
    settings = {"indices": INDICES, "augmentation": ANYTHING, "process": process, "optimizers": optimizers} | settings
    results = train(backbone, heads, IMAGES, LABELS, **settings)
    measured = [[step.loss, step.pseudo_label_loss, step.contrastive_loss or 0.0, step.accuracy] for step in results]
    return np.array(measured), {name: value.numpy() for name, value in backbone.state_dict().items()}, results


CASES = {
    "plain": {},
    "uneven": {"batch_size": 17},
    "last of three": {"batch_size": 64},
    "perceptron": {"arch": "feedforward"},
    "two views": {"objective": Objective(strategy="two_views", weight=0.5), "projection": 8, "batch_size": 17},
    "same labels": {"objective": Objective("l2", strategy="pseudo_labels", label_weight=2.0), "batch_size": 17},
    "clipped": {"clip_norm": 0.1},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_losses_of_one_process(tmp_path, settings):
    one, weights, steps = losses(distributed.ALONE, **settings)
    (first, first_weights, first_steps), (second, second_weights, _) = in_processes(
        2, lambda process: losses(process, **settings), tmp_path
    )
    np.testing.assert_allclose(first[:10], one[:10], atol=1e-4)
    assert abs(one[0, 0] - one[9 if len(one) > 9 else -1, 0]) > 0.01  # they do change
    np.testing.assert_array_equal(first, second)
    assert [(step.step, step.images, step.lr) for step in first_steps] == [
        (step.step, step.images, step.lr) for step in steps
    ]
    assert first_weights.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(first_weights[name], second_weights[name])
        np.testing.assert_allclose(first_weights[name], value, atol=5e-3, rtol=5e-3)


def test_without_synchronised_batch_norm_it_learns_and_statistics_are_the_first_ones(tmp_path):
    (first, first_weights, _), (second, second_weights, _) = in_processes(
        2, lambda process: losses(process, sync_batch_norm=False), tmp_path
    )
    np.testing.assert_array_equal(first, second)
    assert first[:10, 0].min() < first[0, 0] - 0.1
    one = losses(distributed.ALONE)[0]
    assert np.abs(first[1:10] - one[1:10]).max() > 1e-3  # other statistics: the test above would see it
    same = [
        np.array_equal(first_weights[name], second_weights[name]) for name in first_weights if "running" not in name
    ]
    assert all(same)


def test_parts_are_the_whole_batch():
    for whole, count in [(16, 2), (17, 3), (6, 3)]:
        parts = [part_of(whole, Process(rank, count)) for rank in range(count)]
        assert [row for part in parts for row in range(whole)[part.rows]] == list(range(whole))
        assert sum(part.weight for part in parts) == pytest.approx(count)
    small = part_of(5, Process(1, 3))  # not two for each: all of them for everyone
    assert (small.rows, small.weight, small.shared) == (slice(0, 5), 1.0, False)


def test_views_of_a_part_are_those_of_the_batch():
    pixels = torch.rand(7, 1, 8, 8)

    def views(images, **part):
        generators = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        found = augment(images, ANYTHING, *generators, **part)
        return found, [generator.get_state() for generator in generators]

    whole, states = views(pixels)
    some, own = views(pixels[3:5], first=3, whole=7)
    torch.testing.assert_close(some, whole[3:5])
    assert all(torch.equal(state, expected) for state, expected in zip(own, states, strict=True))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(9, 4), (9, 4, 3, 3)])
def test_batch_norm_over_all_processes(tmp_path, shape, affine):
    """Output, statistics and gradients of torch's batch norm over the whole batch."""
    torch.manual_seed(1)
    values, weights = torch.randn(shape) * 3 + 5, torch.randn(shape)

    def layer():
        torch.manual_seed(2)
        found = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(4, affine=affine)
        if affine:
            torch.nn.init.normal_(found.weight)
        return torch.nn.Sequential(found)

    def outcome(network, rows):
        own = values[rows].clone().requires_grad_()
        output = network(own)
        (output * weights[rows]).sum().backward()
        gradients = [own.grad, *(weight.grad for weight in network.parameters())]
        return output.detach(), gradients, network.state_dict()

    def work(process):
        network = synchronise(layer(), CPU)
        assert isinstance(network[0], SyncBatchNorm)
        own = process.share(9)
        return outcome(network, slice(own.start, own.stop))

    output, (gradient, *of_weights), statistics = outcome(layer(), slice(None))
    found = in_processes(2, work, tmp_path)
    torch.testing.assert_close(torch.cat([each[0] for each in found]), output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([each[1][0] for each in found]), gradient, atol=1e-4, rtol=1e-4)
    for number, expected in enumerate(of_weights, start=1):
        torch.testing.assert_close(sum(each[1][number] for each in found), expected, atol=1e-4, rtol=1e-4)
    for each in found:
        assert list(each[2]) == list(statistics)
        for name, value in statistics.items():
            torch.testing.assert_close(each[2][name], value, atol=1e-5, rtol=1e-5)


def test_in_evaluation_it_is_the_one_that_it_is_made_of():
    plain = torch.nn.BatchNorm2d(3).eval()
    plain.running_mean += 1
    values = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(SyncBatchNorm(plain)(values), plain(values))


def outputs():
    return [path for path in OUTPUTS if Path(path).exists()]


@pytest.fixture
def one_process(run):  # noqa: F811 - the fixture
    """Weights and losses after train@1."""
    stage(1)
    found = load_file(layout.checkpoint(1) / "model.safetensors"), layout.train_steps(1).read_text()
    forget()
    return found


def losses_in(text):
    return np.array([float(line.split(",")[2]) for line in text.splitlines()[1:]])


def test_the_stage(one_process, tmp_path):
    first, second = stage_in_processes(stage, 2, tmp_path / "ranks")
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", ""), first
    assert re.fullmatch(r"train@1: loss [\d.]+, pseudo-label accuracy [\d.]+\n", first.out)
    assert re.search(r"^train@1 \(process 0 of 2\): 48 images, ", first.err, flags=re.MULTILINE)
    np.testing.assert_allclose(losses_in(layout.train_steps(1).read_text()), losses_in(one_process[1]), atol=1e-4)
    for name, value in load_file(layout.checkpoint(1) / "model.safetensors").items():
        np.testing.assert_allclose(value, one_process[0][name], atol=1e-3)
    description = (layout.checkpoint(1) / "checkpoint.json").read_text()
    assert "process" not in description
    assert "world" not in description
    assert not layout.PROGRESS.exists()


def interrupted(folder, count, rank, number, action):
    """Exit codes and errors of processes of which one does something in a step, counted from 1."""
    entered = ExitStack()

    def before(own):
        if own == rank:
            entered.enter_context(in_step(number, action))

    return stage_in_processes(stage, count, folder, before=before)


@pytest.mark.parametrize(("rank", "again"), [(0, 2), (1, 2), (1, 1), (1, 3)])
def test_another_number_of_processes_goes_on_after_a_kill(one_process, tmp_path, capsys, rank, again):
    ended = interrupted(tmp_path / "ranks", 2, rank, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert [each.code for each in ended].count(-signal.SIGKILL) == 1
    assert ended[1 - rank].code == LostProcessError.exit_code
    gone = "another process of this stage has ended or cannot be reached"
    said = f"error: {gone}; nothing was published; start the stage again"
    assert ended[1 - rank].err.splitlines()[-1] == said
    assert outputs() == []
    if again == 1:
        capsys.readouterr()
        with in_step(0, kill) as begun:
            stage(1)
        assert len(begun) == 3
        said = capsys.readouterr().err
    else:
        found = stage_in_processes(stage, again, tmp_path / "again")
        assert [each.code for each in found] == [0] * again, found
        said = found[0].err
    assert "train@1: continues at step 3 of 6\n" in said
    np.testing.assert_allclose(losses_in(layout.train_steps(1).read_text()), losses_in(one_process[1]), atol=1e-4)
    assert not layout.PROGRESS.exists()


def test_one_that_is_told_to_stop_stops_all_after_the_same_step(one_process, tmp_path, monkeypatch):
    monkeypatch.delenv("DEEPCLUSTER_PROGRESS_SECONDS")
    ended = interrupted(tmp_path / "ranks", 2, 1, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert [each.code for each in ended] == [-signal.SIGTERM] * 2
    assert outputs() == []
    first, second = stage_in_processes(stage, 2, tmp_path / "again")
    assert (first.code, second.code) == (0, 0)
    assert "train@1: continues at step 3 of 6\n" in first.err
    np.testing.assert_allclose(losses_in(layout.train_steps(1).read_text()), losses_in(one_process[1]), atol=1e-4)


@pytest.mark.parametrize("changes", [CHANGES["adam"], CHANGES["frozen"]], ids=["adam", "frozen"])
def test_other_settings_end_where_one_process_does(run, tmp_path, changes):  # noqa: F811 - the fixture
    edit_params(Path("params.yaml"), changes)
    stage(1)
    one, steps = load_file(layout.checkpoint(1) / "model.safetensors"), layout.train_steps(1).read_text()
    forget()
    ended = stage_in_processes(stage, 2, tmp_path / "ranks")
    assert [each.code for each in ended] == [0, 0], ended
    np.testing.assert_allclose(losses_in(layout.train_steps(1).read_text()), losses_in(steps), atol=1e-3)
    assert load_file(layout.checkpoint(1) / "model.safetensors").keys() == one.keys()


def test_a_batch_of_too_few_images_is_refused(run, tmp_path):  # noqa: F811 - the fixture
    set_params(train={"batch_size": 3})
    ended = stage_in_processes(stage, 2, tmp_path / "ranks")
    said = "train.batch_size 3 is shared by 2 processes, which need 2 images each; start fewer, or raise it"
    assert "".join(each.err for each in ended) == f"error: train@1: {said}\n"


def test_deepcluster_v2_is_for_one_process(run_v2, tmp_path):  # noqa: F811 - the fixture
    ended = stage_in_processes(stage, 2, tmp_path / "ranks")
    said = "error: train@1: train.method deepcluster_v2 works in one process; start the stage without torchrun\n"
    assert "".join(each.err for each in ended) == said


def test_a_loss_that_is_not_finite_is_said_once(run, tmp_path):  # noqa: F811 - the fixture
    set_params(train__optimizer={"lr": 1e30})
    ended = stage_in_processes(stage, 2, tmp_path / "ranks")
    assert sorted(each.code for each in ended) == [2, distributed.FOLLOWS]
    said = [line for each in ended for line in each.err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert re.search(r"loss is (nan|inf) at step \d: lower train.optimizer.lr", said[0])
    assert outputs() == []

"""`deepcluster doctor`: every check on a machine or project that has what it looks for, and lacks it."""

import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT, command_environment, edit_params, write_images

from deepcluster import catalogue
from deepcluster.doctor import machine, project, storage
from deepcluster.doctor.checks import Check, as_json, as_lines, carried_out
from deepcluster.fingerprints import fingerprints


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `deepcluster new` makes it, with its images beside it. Never changed."""
    from deepcluster.projects.write import new_project

    root = tmp_path_factory.mktemp("a place")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in command_environment(root).items():
            patch.setenv(name, value)
        write_images(root / "images", count=20)
        new_project(root / "project", root / "images")
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project and its images, as current folder."""
    for name, value in command_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("DVC_STAGE", "COLUMNS", "DEEPCLUSTER_DEVICE", "DEEPCLUSTER_MEMORY_SHARE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(made / "images", tmp_path / "images")
    shutil.copytree(made / "project", tmp_path / "project")
    edit_params(tmp_path / "project/params.yaml", {"data.root": str(tmp_path / "images")})
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def found(check: Any) -> list[tuple[str, str, str]]:
    """(state, found, remedy) of all that a check finds."""
    return [(one.state, one.found, one.remedy) for one in check()]


class TestCarriedOut:
    def test_a_check_that_crashes_is_a_failure_and_the_next_goes_on(self):
        def crashes() -> Any:
            yield Check("a", "ok", "so far")
            raise OSError("\n  no such library\nin detail")

        def works() -> Any:
            yield Check("b", "ok", "fine")

        assert list(carried_out([("a", crashes), ("b", works)])) == [
            Check("a", "ok", "so far"),
            Check("a", "fail", "OSError: no such library", "reinstall deepcluster, or report this"),
            Check("b", "ok", "fine"),
        ]

    def test_ctrl_c_is_no_failure(self):
        def interrupted() -> Any:
            raise KeyboardInterrupt
            yield

        with pytest.raises(KeyboardInterrupt):
            list(carried_out([("a", interrupted)]))

    def test_lines_are_one_each_and_aligned(self):
        lines = as_lines([Check("a", "ok", "x\ny\x1b[31m"), Check("long", "fail", "z", "mend it")])
        assert lines == ["ok    a     x?y?[31m", "fail  long  z - mend it"]

    @pytest.mark.parametrize(("states", "ok"), [(["ok", "warn"], True), (["ok", "fail"], False), ([], True)])
    def test_only_failures_count(self, states, ok):
        assert as_json([Check("a", state, "x") for state in states])["ok"] is ok


class TestMachine:
    def test_libraries_of_this_installation_are_as_required(self):
        ((state, text, remedy),) = found(machine.libraries)
        assert (state, remedy) == ("ok", "")
        assert "torch 2." in text
        assert "dvc 3.67." in text

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("numpy>=2", None),
            ("no-such-library>=1; extra == 'onnx'", None),
            ("numpy>=900", ("numpy: {} installed, >=900 needed", "pip install 'numpy>=900'")),
            ("no-such-library", ("no-such-library: not installed,  needed", "pip install 'no-such-library'")),
        ],
    )
    def test_a_requirement(self, line, expected):
        import numpy

        problem = machine.requirement_problem(line)
        assert problem == (expected and (expected[0].format(numpy.__version__), expected[1]))

    def test_another_python_on_path(self, tmp_path, monkeypatch):
        fake = tmp_path / "python"
        fake.write_text("#!/bin/sh\necho /somewhere/else\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        bin_folder = os.path.dirname(sys.executable)
        remedy = f"for `dvc repro` put {bin_folder} first on PATH; `deepcluster run` needs no other python"
        assert found(machine.python_on_path) == [("warn", f"{fake} is another python than deepcluster's", remedy)]
        fake.unlink()
        assert found(machine.python_on_path) == [("warn", "none", remedy)]
        os.symlink(sys.executable, tmp_path / "unused")
        monkeypatch.setenv("PATH", bin_folder)
        assert found(machine.python_on_path)[0][0] == "ok"

    def test_no_git(self, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        remedy = "install git; DVC keeps a project's history with it"
        assert found(machine.git) == [("fail", "not found", remedy)]

    def test_little_memory(self, monkeypatch):
        from deepcluster import memory

        monkeypatch.setattr(memory, "available_memory", lambda: 1.5e9)
        ((state, text, remedy),) = found(machine.memory)
        assert (state, text) == ("warn", "1.5 GB available")
        assert "`deepcluster estimate`" in remedy

    def test_threads_that_the_environment_takes_away(self, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        text = "4 cores, of which OMP_NUM_THREADS=2 lets 2 compute"
        assert found(machine.processor) == [("warn", text, "unset OMP_NUM_THREADS")]
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        assert found(machine.processor) == [("ok", "4 cores", "")]

    def test_a_gpu_and_its_memory(self, monkeypatch):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (7.5e9, 80e9))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
        first, second = found(machine.torch_devices)
        assert first[1].endswith(", cuda:0 Card 0, 7.5 of 80.0 GB free")
        assert second[1].endswith(", cuda:1 Card 1, 7.5 of 80.0 GB free")

    def test_a_driver_without_a_usable_gpu(self, monkeypatch, tmp_path):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(machine, "DRIVER", str(tmp_path))
        monkeypatch.setattr(torch.version, "cuda", None)
        ((state, text, remedy),) = found(machine.torch_devices)
        assert (state, remedy) == ("warn", "install a torch for this driver")
        assert text.endswith("a GPU driver but no usable GPU (built without CUDA)")

    def test_faiss_without_the_gpu_that_torch_has(self, monkeypatch):
        import faiss
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
        monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
        ((state, text, _),) = found(machine.faiss_devices)
        assert (state, text) == ("warn", f"{faiss.__version__}, compiled without GPU, though torch has one")

    @pytest.mark.parametrize(
        ("name", "value", "state", "text"),
        [
            ("DEEPCLUSTER_DEVICE", "cpu", "ok", "DEEPCLUSTER_DEVICE=cpu"),
            ("DEEPCLUSTER_DEVICE", "no-device", "fail", "DEEPCLUSTER_DEVICE=no-device: not usable here: "),
            ("DEEPCLUSTER_MEMORY_SHARE", "2", "fail", "=2: must be a number from 0 to 1; got '2'"),
        ],
    )
    def test_variables(self, monkeypatch, name, value, state, text):
        for other in ("DEEPCLUSTER_DEVICE", "DEEPCLUSTER_MEMORY_SHARE"):
            monkeypatch.delenv(other, raising=False)
        assert found(machine.environment) == []
        monkeypatch.setenv(name, value)
        ((is_state, is_text, _),) = found(machine.environment)
        assert is_state == state
        assert text in is_text


class TestStorage:
    @pytest.mark.parametrize(("free", "state"), [(50e9, "ok"), (4e9, "warn"), (0.4e9, "fail")])
    def test_room(self, monkeypatch, tmp_path, free, state):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        check = storage.room("disk", tmp_path / "not yet")
        assert (check.state, check.found) == (state, f"{tmp_path}/not yet: {free / 1e9:.1f} GB free")

    def test_links_are_tried(self, tmp_path):
        (tmp_path / "cache").mkdir()
        (tmp_path / "work").mkdir()
        links = storage.usable_links(tmp_path / "cache", tmp_path / "work", ["hardlink", "symlink", "copy"])
        assert links == ["hardlink", "symlink", "copy"]
        assert not list(tmp_path.glob("*/*"))

    @pytest.mark.parametrize(
        ("wanted", "usable", "state", "text"),
        [
            (["hardlink", "copy"], ["hardlink", "copy"], "ok", "hardlink (of hardlink, copy)"),
            (["copy"], ["copy"], "warn", "copy, so every artifact lies on the disk twice"),
            (["hardlink", "copy"], ["copy"], "warn", "no link works, so every artifact lies on the disk twice"),
        ],
    )
    def test_copies_take_the_disk_twice(self, monkeypatch, tmp_path, wanted, usable, state, text):
        monkeypatch.setattr(storage, "usable_links", lambda *_: usable)
        (check,) = storage.cache_link("cache", tmp_path, tmp_path, wanted)
        assert check.state == state
        assert check.found.endswith(text)

    def test_a_folder_that_cannot_be_written(self, monkeypatch, tmp_path):
        def refuse(**_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
        check = storage.writable("write", tmp_path)
        assert (check.state, check.found) == ("fail", f"{tmp_path}: Permission denied")


class TestProject:
    def test_a_new_one_has_nothing_to_complain_of(self, folder, outcome):
        edited = [check for check in carried_out(project.project_checks()) if check.state != "ok"]
        # the copy names its own images, which is a change
        assert [check.found for check in edited] == ["not committed: params.yaml"]

    def test_a_folder_is_tried_once(self, folder):
        assert [path for _, path, _ in found(project.write)] == [str(Path.cwd())]
        Path("data").mkdir()
        assert [path for _, path, _ in found(project.write)] == [str(Path.cwd()), str(Path.cwd() / "data")]

    def test_every_mistake_in_params(self, folder):
        Path("params.yaml").write_text("epochs: 0\ncluster: {k: 1, kk: 2}\n")
        remedy = "correct it; the file's comments help"
        assert found(project.settings) == [
            ("fail", "epochs: must be >= 1; got 0", remedy),
            ("fail", "cluster.k: must be >= 2; got 1", remedy),
            ("fail", "cluster.kk: unknown key; did you mean 'k'?", remedy),
        ]
        assert found(project.data_set) == found(project.schedule) == []

    def test_images_in_the_folder(self, folder):
        images = folder.parent / "images"
        assert found(project.data_set) == [("ok", f"{images}: 20 images", "")]
        (images / "above/empty.png").touch()
        text = f"{images}: 21 images, 1 of them empty, 0 more refused"
        assert found(project.data_set) == [("fail", text, "remove them, or raise data.max_unreadable")]
        edit_params(Path("params.yaml"), {"data.max_unreadable": 0.1})
        assert found(project.data_set) == [("ok", text, "")]

    def test_no_images(self, folder):
        images, remedy = folder.parent / "images", "name your folder: `deepcluster set data.root=FOLDER`"
        shutil.rmtree(images)
        assert found(project.data_set) == [("fail", f"{images}: no such folder", remedy)]
        images.mkdir()
        assert found(project.data_set) == [("fail", f"{images}: no images that may be read", remedy)]

    def test_named_data_sets_by_their_files(self, folder):
        root = folder.parent / "raw"
        edit_params(Path("params.yaml"), {"data.name": "usps", "data.split": "train", "data.root": str(root)})
        ((state, text, remedy),) = found(project.data_set)
        assert (state, text) == ("warn", f"usps train: no files in {root}")
        assert remedy == "`deepcluster run` downloads them; without a network see docs/data.md"
        root.mkdir()
        (root / "usps.bz2").touch()
        assert found(project.data_set) == [("ok", f"usps train: files in {root}", "")]
        edit_params(Path("params.yaml"), {"data.split": "val"})
        text = "usps has no split 'val'"
        assert found(project.data_set) == [("fail", text, "correct data.split (docs/data.md)")]

    def test_a_stale_schedule(self, folder):
        edit_params(Path("params.yaml"), {"epochs": 3, "train.schedule.epochs": 3})
        text = "params.yaml asks for 3 epochs, stages/schedule.yaml unrolls 20"
        assert found(project.schedule) == [("warn", text, "`deepcluster plan`; `deepcluster run` does it too")]

    def test_another_version_of_the_code(self, folder):
        path = Path("stages/code.yaml")
        path.write_text(path.read_text().replace(fingerprints()["pca"], "0" * 16))
        ((state, text, _),) = found(project.code)
        assert (state, text) == ("warn", "another deepcluster was installed since; stages pca will run again")
        path.unlink()
        assert found(project.code) == [("ok", "the project's own", "")]

    def test_a_pipeline_of_another_version(self, folder):
        assert found(project.pipeline)[0][0] == "ok"
        path = Path("dvc.yaml")
        cached = path.read_text()
        path.write_text(cached.replace("- data/epochs/${key}/features.zarr\n\n", "- data/epochs/${key}/features.zarr:\n            cache: false\n\n"))  # fmt: skip  # noqa: E501
        assert path.read_text() != cached
        assert found(project.pipeline)[0][0] == "ok"  # how outputs are cached is anybody's choice
        path.write_text(cached.replace("python -m stages.pca", "python -m stages.older"))
        ((state, text, _),) = found(project.pipeline)
        assert (state, text) == ("warn", "dvc.yaml is not this deepcluster's: stages pca")
        path.unlink()
        assert found(project.pipeline)[0][:2] == ("fail", "dvc.yaml: not found")

    def test_git(self, folder):
        Path("dvc.lock").write_text("schema: '2.0'\n")
        remedy = "`git add` and `git commit` them to keep these results findable"
        assert found(project.repository) == [("warn", "not committed: params.yaml, dvc.lock", remedy)]
        shutil.rmtree(".git")
        ((state, text, _),) = found(project.repository)
        assert state == "warn"
        assert "not a git repository" in text

    def test_dvc(self, folder, monkeypatch):
        import dvc

        assert found(project.dvc_ready) == [("ok", "initialised", "")]
        monkeypatch.setattr(dvc, "__version__", "9.9.9")
        text = "dvc 9.9.9: `deepcluster run` is tested with dvc 3.67 only"
        remedy = "use `dvc repro` instead; it gives the same result"
        assert found(project.dvc_ready) == [("warn", text, remedy)]
        shutil.rmtree(".dvc")
        assert found(project.dvc_ready) == [("fail", "not initialised here", "`dvc init`")]
        assert found(project.cache) == []

    def test_a_run_going_on_by_dvcs_own_lock(self, folder):
        from dvc.lock import Lock

        assert found(project.runs_going_on) == [("ok", "none going on", "")]
        with Lock(".dvc/tmp/lock"):
            ((state, text, remedy),) = found(project.runs_going_on)
            assert (state, remedy) == ("warn", "wait for it; a second run would stop at once")
            assert text == f"DVC is at work in process {os.getpid()}"
        assert found(project.runs_going_on)[0][0] == "ok"
        with open(".dvc/tmp/lock") as file:  # the look has left it free
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_stages_that_a_living_process_runs(self, folder):
        gone = 2**22 + 1  # above any process number
        entry = {"pid": os.getpid(), "cmd": "deepcluster run"}
        content = {"write": {"data/x": entry}, "read": {"data/y": [{"pid": gone, "cmd": "dvc repro"}]}}
        Path(".dvc/tmp/rwlock").write_text(json.dumps(content))
        assert found(project.runs_going_on)[0][1] == f"DVC is at work in process {os.getpid()}"
        Path(".dvc/tmp/rwlock").write_text("not json")
        text = "a killed DVC left .dvc/tmp/rwlock half written"
        assert found(project.runs_going_on) == [("warn", text, "`deepcluster run` mends it")]

    def test_dvc_lock_whole_torn_and_not_dvcs(self, folder):
        head = "schema: '2.0'\nstages:\n"
        entry = "    cmd: python -m stages.prepare\n    outs:\n    - path: data/x\n      hash: md5\n      md5: 12ab\n"
        assert found(project.lock_file) == [("ok", "none yet: nothing has run", "")]
        lock = Path("dvc.lock")
        whole = f"{head}  prepare:\n{entry}  initialise:\n{entry}"
        lock.write_text(whole)
        assert found(project.lock_file) == [("ok", "2 stages recorded", "")]
        lock.write_text(whole[:-20])
        text = "left half written by a killed DVC after 1 whole entries"
        assert found(project.lock_file) == [("warn", text, "`deepcluster run` mends it")]
        lock.write_text(f"# mine\n{whole}")
        assert found(project.lock_file) == [("ok", "edited by hand", "")]
        lock.write_text(f"<<<<<<< HEAD\n{whole}=======\n>>>>>>> other\n")
        assert found(project.lock_file)[0][:2] == ("fail", "no YAML (a merge conflict?)")
        lock.write_text(whole.replace("hash: md5", "hash: md4"))
        ((state, text, remedy),) = found(project.lock_file)
        assert (state, text) == ("fail", "dvc.lock: damaged (hash: expected md5, got 'md4')")
        assert remedy.startswith("run `git checkout dvc.lock`")

    def test_a_cache_elsewhere(self, folder):
        Path(".dvc/config").write_text('[cache]\n    dir = ../../a cache\n    type = "hardlink,copy"\n')
        where, wanted = project.dvc_cache()
        assert where.resolve() == (folder.parent / "a cache").resolve()
        assert wanted == ["hardlink", "copy"]


class TestCommand:
    def test_outside_of_a_project(self, outcome, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        status, out, _ = outcome("doctor")
        assert status == 0
        text = f"none here ({tmp_path} has no dvc.yaml), so only the machine was checked"
        assert out.endswith(f"{text} - `deepcluster new DIR --images FOLDER` makes one\n")
        assert "params.yaml" not in out
        assert list(tmp_path.iterdir()) == []

    def test_exit_code_1_if_something_fails_and_json(self, outcome, folder):
        before = sorted(path for path in folder.rglob("*") if ".git" not in path.parts)
        status, out, _ = outcome("doctor", "--json")
        assert status == 0
        assert json.loads(out)["ok"] is True
        assert sorted(path for path in folder.rglob("*") if ".git" not in path.parts) == before
        shutil.rmtree(folder.parent / "images")
        status, out, _ = outcome("doctor", "--json")
        failed = [check for check in json.loads(out)["checks"] if check["state"] == "fail"]
        assert (status, [check["name"] for check in failed]) == (1, ["data set"])

    def test_a_library_that_crashes_is_a_line(self, outcome, folder, monkeypatch):
        def crash() -> Any:
            raise ImportError("libcudart.so.13: cannot open shared object file")
            yield

        monkeypatch.setattr(machine, "faiss_devices", crash)
        status, out, err = outcome("doctor")
        assert (status, err) == (1, "")
        line = next(line for line in out.splitlines() if line.startswith("fail"))
        assert "ImportError: libcudart.so.13: cannot open shared object file" in line

    def test_a_params_file_that_is_no_text(self, outcome, folder):
        Path("params.yaml").write_bytes(b"\xff")
        status, out, _ = outcome("doctor")
        assert status == 1
        assert [line.split()[1:2] for line in out.splitlines() if line.startswith("fail")] == [["params.yaml"]]


class TestCatalogue:
    def test_names_every_data_set(self):
        from deepcluster.datasets import DATA_NAMES

        for name in DATA_NAMES:
            split = "train"
            assert (catalogue.known(name, split) is None) == (name == "folder")
            assert catalogue.known(name, "no such split") is None

    def test_counts_are_those_of_the_documentation(self):
        table = (CHECKOUT / "docs/data.md").read_text()
        for name, split in [("mnist", "test"), ("usps", "train"), ("gtsrb", "test"), ("stl10", "train+unlabeled")]:
            line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
            assert (
                f"{split}{'**' if split.startswith('train+') else ''} ({catalogue.known(name, split).count:,})" in line
            )

    def test_agrees_with_what_is_read(self):
        from deepcluster.datasets.digits import read_digits
        from deepcluster.datasets.mnist import FOLDERS

        images_NCHW, _, names = read_digits("train")
        found = catalogue.known("digits", "train")
        assert (found.count, found.channels, found.side, found.side) == images_NCHW.shape
        assert found.classes == len(names)
        assert catalogue.MNIST_FOLDERS == FOLDERS

    def test_splits_without_labels(self):
        assert catalogue.known("stl10", "unlabeled").classes is None
        assert catalogue.known("tinyimagenet", "test").classes is None
        assert catalogue.known("tinyimagenet", "val").classes == 200

    def test_all_files_of_one_alternative_are_enough(self, tmp_path):
        raw = tmp_path / "MNIST/raw"
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte.gz").touch()
        (tmp_path / "train-labels-idx1-ubyte.gz").touch()
        assert not catalogue.present("mnist", "train", tmp_path)
        (raw / "train-labels-idx1-ubyte.gz").touch()
        assert catalogue.present("mnist", "train", tmp_path)
        assert not catalogue.present("mnist", "test", tmp_path)
        assert catalogue.present("digits", "all", tmp_path / "none")

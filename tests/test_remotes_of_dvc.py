"""DVC's remotes: clones that run nothing, and one line for a remote that refuses, stalls or is not there."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import Project
from remotes import (
    BUCKET,
    KEYS,
    closed_port,
    refusing_server,
    s3_server,
    silent_server,
)
from test_runner import ran_in_process

from deepcluster import pulling
from deepcluster.errors import RemoteError, UserError

ALL = 2 + 2 * 4 + 2  # stages


@pytest.fixture(scope="module")
def pushed(finished, tmp_path_factory):
    """A run of two epochs, committed and pushed to a folder with the run-cache. Only for tests that change nothing."""
    root = tmp_path_factory.mktemp("pushed")
    project = Project(root / "a project", finished.environment)
    shutil.copytree(finished.root, project.root, symlinks=True)
    project.dvc("remote", "add", "--default", "store", str(root / "a store"))
    project.commit("A run")
    project.dvc("push", "--run-cache")
    return project


@pytest.fixture
def clone(pushed, tmp_path):
    return pushed.clone(tmp_path / "a clone")


def url(project):
    """One for each test, since DVC remembers by the URL what it has pushed."""
    return f"s3://{BUCKET}/{project.root.parent.name}"


def to_s3(project, address, **settings):
    """The project with a bucket as DVC's remote, behind that address."""
    project.dvc("remote", "add", "--force", "--default", "store", url(project))
    for name, value in {"endpointurl": address, **settings}.items():
        project.dvc("remote", "modify", "store", name, value)
    return replace(project, environment=project.environment | KEYS)


def test_a_second_clone_runs_nothing(clone, pushed, here):
    output = here(clone, "run", "--pull")
    assert ran_in_process(output) == []
    assert re.search(rf"^\d+ files pulled\n{ALL} restored from the cache$", output, flags=re.MULTILINE)
    assert clone.digests() == pushed.digests()
    assert "everything is up to date" in here(clone, "run", "--pull")


def test_a_clone_without_dvc_lock_takes_another_s_runs_from_the_run_cache(clone, pushed, here):
    (clone.root / "dvc.lock").unlink()
    output = here(clone, "run", "--pull", "train@2")
    assert ran_in_process(output) == []
    assert output.endswith("10 restored from the cache\n")
    assert clone.digests("data/epochs", "data/history") == pushed.digests("data/epochs", "data/history")


@pytest.mark.slow
def test_what_the_remote_lacks_runs(clone, pushed, here, tmp_path):
    lacking = tmp_path / "lacking"
    shutil.copytree(pushed.root.parent / "a store", lacking)
    lock = (clone.root / "dvc.lock").read_text()
    (md5,) = re.findall(r"pca.zarr\n +hash: md5\n +md5: (\S+)", lock.split("  pca@2:")[1].split("outs:")[1])[:1]
    (lacking / "files/md5" / md5[:2] / md5[2:]).unlink()
    clone.dvc("remote", "modify", "store", "url", str(lacking))
    output = here(clone, "run", "--pull", "cluster@2")
    assert ran_in_process(output) == ["pca@2"]
    assert output.endswith("1 stages ran, 8 restored from the cache\n")


@pytest.mark.slow
def test_pruned_dumps_are_neither_pulled_nor_missed(clone, here):
    here(clone, "run", "--pull")
    here(clone, "prune", "--no-first", "--yes")
    clone.commit("Pruned")
    second = clone.clone(clone.root.parent / "second")
    output = here(second, "run", "--pull")
    assert output.endswith(f"\n{ALL - 1} restored from the cache\n")
    assert not (second.root / "data/epochs/1/features.zarr").exists()


@pytest.mark.slow
def test_dvc_s_own_commands(clone, pushed):
    assert clone.repro("--pull") == []
    assert clone.digests() == pushed.digests()
    second = pushed.clone(clone.root.parent / "second")
    second.dvc("pull")
    assert second.digests() == pushed.digests()
    assert second.repro() == []


@pytest.mark.slow
def test_the_same_by_way_of_s3(clone, pushed, here):
    pytest.importorskip("moto.server", reason="moto is not installed")
    with s3_server() as address:
        shutil.copytree(pushed.root / ".dvc/cache", clone.root / ".dvc/cache")
        first = to_s3(clone, address)
        first.dvc("push", "--run-cache")
        first.commit("To S3")
        second = first.clone(clone.root.parent / "second")
        output = here(second, "run", "--pull")
    assert ran_in_process(output) == []
    assert second.digests() == pushed.digests()


@pytest.mark.slow
def test_a_push_that_breaks_off_publishes_no_folder_in_part_and_the_next_goes_on(clone, pushed):
    pytest.importorskip("moto.server", reason="moto is not installed")
    import fsspec

    shutil.copytree(pushed.root / ".dvc/cache", clone.root / ".dvc/cache")
    with s3_server(puts=40) as address:
        project = to_s3(clone, address)
        broken = project.dvc("push", "--jobs", "2", status=None)
        assert broken.returncode == 1
        assert "failed to push" in broken.stderr
        options = {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": address}}
        files = fsspec.filesystem("s3", skip_instance_cache=True, **options)
        there = {"".join(path.split("/")[-2:]) for path in files.find(f"{url(project)}/files/md5")}
        folders = [name for name in there if name.endswith(".dir")]
        assert 0 < len(there) <= 40
        for name in folders:
            listed = json.loads((project.root / ".dvc/cache/files/md5" / name[:2] / name[2:]).read_text())
            assert {entry["md5"] for entry in listed} <= there


class TestFaults:
    def test_without_a_remote(self, clone, here):
        clone.dvc("remote", "remove", "store")
        line = "error: --pull: no remote to pull from; `dvc remote add -d NAME URL` names one\n"
        assert here(clone, "run", "--pull", status=2) == line

    def test_a_folder_that_is_not_there(self, clone, here, tmp_path):
        clone.dvc("remote", "modify", "store", "url", str(tmp_path / "unmounted"))
        assert here(clone, "run", "--pull", status=2) == (
            f"error: {tmp_path / 'unmounted'}: not found; is the disk that has DVC's remote 'store' there?\n"
        )
        assert not (clone.root / "data/dataset").exists()

    def test_nobody_listens(self, clone, here):
        project = to_s3(clone, closed_port())
        said = here(project, "run", "--pull", status=2).splitlines()[-1]
        assert said.startswith(f"error: {url(clone)}: cannot be reached (")
        assert said.endswith("); check the network and `dvc remote list`")

    @pytest.mark.slow
    def test_wrong_credentials(self, clone, here):
        with refusing_server(403) as address:
            said = here(to_s3(clone, address), "run", "--pull", status=2).splitlines()[-1]
        assert said.startswith(f"error: {url(clone)}: refused (")
        assert "check the credentials (of S3: AWS_ACCESS_KEY_ID" in said

    def test_it_says_nothing(self, clone, here):
        with silent_server() as address:
            project = to_s3(clone, address)
            project = replace(project, environment=project.environment | {"DEEPCLUSTER_STORE_TIMEOUT": "0.3"})
            said = here(project, "run", "--pull", status=2).splitlines()[-1]
        assert said == (
            f"error: {url(clone)}: no answer within 0.3 s; check the network and `dvc remote list`, or allow more "
            "with DEEPCLUSTER_STORE_TIMEOUT"
        )
        assert not (clone.root / "data/dataset").exists()


def repository(**changes):
    """As much of a `dvc.repo.Repo` as a pull needs: a remote that is no folder, and a cache."""
    config = {"core": {"remote": "store"}, "remote": {"store": {"url": "other://store"}}}
    cloud = SimpleNamespace(get_remote_odb=lambda *arguments, **options: SimpleNamespace())
    return SimpleNamespace(config=config, cloud=cloud, **changes)


def test_files_that_do_not_come_stop_the_run_before_it_makes_them_at_great_cost(monkeypatch):
    failed = SimpleNamespace(failed={1, 2, 3}, transferred=set())
    repo = repository(cache=SimpleNamespace(local=SimpleNamespace(exists=lambda md5: False)))
    repo.cloud.transfer = lambda *arguments, **options: failed
    monkeypatch.setattr(
        pulling,
        "_sweeps",
        lambda repo, remote, outputs, seen: pulling._transfer(repo, SimpleNamespace(verify=False), set(outputs), seen),
    )
    one = pytest.importorskip("dvc_data.hashfile.hash_info").HashInfo("md5", "a")
    with pytest.raises(RemoteError) as refused:
        pulling.pull(repo, [one])
    assert str(refused.value) == "other://store: 3 files did not come, as said above"


def test_a_transfer_that_goes_on_slowly_is_not_given_up(monkeypatch):
    """Time passes only where the test says so."""
    now = [0.0]
    monkeypatch.setattr(pulling.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("DEEPCLUSTER_STORE_TIMEOUT", "60")

    def work(seen):
        for _ in range(5):
            now[0] += 50
            seen()
        return "done"

    monkeypatch.setattr(pulling, "started", lambda work, seen: Finished(work(seen)))
    assert pulling._watched(work) == "done"


def test_a_transfer_that_stands_still_is_given_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pulling.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pulling.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 20))
    monkeypatch.setenv("DEEPCLUSTER_STORE_TIMEOUT", "60")
    monkeypatch.setattr(pulling, "started", lambda work, seen: Finished(None, done=False))
    with pytest.raises(TimeoutError):
        pulling._watched(lambda seen: None)
    assert now[0] == 80


class Finished:
    """A future that has ended, or never does."""

    def __init__(self, value, *, done=True):
        self.result, self.done = lambda: value, lambda: done


def test_a_remote_s_own_time_outs_stay(monkeypatch):
    monkeypatch.setenv("DEEPCLUSTER_STORE_TIMEOUT", "7")
    repo = repository()
    repo.config["remote"]["store"] = {"url": "s3://b", "read_timeout": 3}
    with pulling._patience(repo, "s3://b", "store"):
        assert repo.config["remote"]["store"] == {"url": "s3://b", "read_timeout": 3, "connect_timeout": 7.0}


def test_a_time_out_that_is_none(monkeypatch):
    monkeypatch.setenv("DEEPCLUSTER_STORE_TIMEOUT", "soon")
    with pytest.raises(
        UserError, match=r"^DEEPCLUSTER_STORE_TIMEOUT: must be a number of seconds above 0; got 'soon'$"
    ):
        pulling.pull(repository(), [])

"""`deepcluster prune`: what goes, what stays because something else needs it, and what runs do afterwards."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_runner import ran_in_process
from test_seeds import COPIES

from deepcluster.errors import ArtifactError, BusyError, UserError
from deepcluster.pruned import read_pruned, write_pruned
from deepcluster.pruning import Dump, Plan, carry_out, chosen_epochs, planned
from deepcluster.references import contents, place

HASHES = {epoch: hashlib.md5(f"dump {epoch}".encode()).hexdigest() + ".dir" for epoch in range(1, 6)}


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ({}, [1, 6]),
        ({"first": False, "last": False}, []),
        ({"every": 2}, [1, 2, 4, 6]),
        ({"first": False, "last": False, "every": 3}, [3, 6]),
        ({"first": False, "keep": " 3, 5"}, [3, 5, 6]),
    ],
)
def test_epochs_that_are_kept(chosen, kept):
    options = {"every": None, "first": True, "last": True, "keep": None} | chosen
    assert chosen_epochs(range(1, 7), **options) == kept


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"every": 0}, "--every: must be >= 1; got 0"),
        ({"keep": "3-5"}, "--keep: must be epochs with commas between, as in 3,7; got '3-5'"),
        ({"keep": "3,9,8"}, "--keep: no feature dump of epoch 8, 9 is in dvc.lock"),
    ],
)
def test_epochs_that_cannot_be_kept(chosen, message):
    options = {"every": None, "first": True, "last": True, "keep": None} | chosen
    with pytest.raises(UserError) as refused:
        chosen_epochs(range(1, 7), **options)
    assert str(refused.value) == message


def git(*arguments):
    names = [f"GIT_{role}_{key}" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")]
    environment = os.environ | dict.fromkeys(names, "test") | {"GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, env=environment).stdout


def lock_text(hashes):
    """A dvc.lock in which each extract@E has made a dump of that hash, and pca@E has read it."""
    entries = ""
    for epoch, md5 in hashes.items():
        path = f"data/epochs/{epoch}/features.zarr"
        entries += f"  extract@{epoch}:\n    cmd: x\n    outs:\n    - path: {path}\n      hash: md5\n      md5: {md5}\n"
        entries += f"  pca@{epoch}:\n    cmd: x\n    deps:\n    - path: {path}\n      hash: md5\n      md5: {md5}\n"
    return f"schema: '2.0'\nstages:\n{entries}"


def commit(message="work"):
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", message)


@pytest.fixture
def dumps(tmp_path, monkeypatch):
    """A project of five epochs with a dump of one file of 1,000 bytes each, linked into DVC's cache; the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / ".dvc/site"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    cache = tmp_path / ".dvc/cache/files/md5"
    (tmp_path / "params.yaml").write_text("epochs: 5\n")
    (tmp_path / "stages").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "dvc.lock").write_text(lock_text(HASHES))
    (tmp_path / ".gitignore").write_text("/data\n/.dvc\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("")
    for epoch, md5 in HASHES.items():
        make_dump(cache, epoch, md5)
    git("init", "--quiet", "--initial-branch=main")
    commit()
    return cache


def make_dump(cache, epoch, md5):
    file = tmp(f"data/epochs/{epoch}/features.zarr/c")
    file.write_bytes(bytes([epoch]) * 1000)
    content = hashlib.md5(file.read_bytes()).hexdigest()
    write(place(cache, md5), json.dumps([{"md5": content, "relpath": "c"}]))
    place(cache, content).parent.mkdir(parents=True, exist_ok=True)
    os.link(file, place(cache, content))


def tmp(name):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def prune(**chosen):
    """What was planned, and done."""
    options = {"every": None, "first": True, "last": True, "keep": None, "own_cache": False} | chosen
    with planned(**options) as plan:
        carry_out(plan)
    return plan


def files(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_workspace_and_cache_lose_the_dumps_that_are_not_kept(dumps):
    before = {epoch: [place(dumps, HASHES[epoch]), place(dumps, contents(dumps, HASHES[epoch])[0])] for epoch in HASHES}
    plan = prune(keep="3")
    assert [dump.epoch for dump in plan.dumps] == [2, 4]
    assert [tmp(f"data/epochs/{epoch}/features.zarr").exists() for epoch in HASHES] == [True, False, True, False, True]
    assert files(dumps) == sorted(path for epoch in (1, 3, 5) for path in before[epoch])
    assert read_pruned() == {f"data/epochs/{epoch}/features.zarr": HASHES[epoch] for epoch in (2, 4)}


def test_bytes_that_are_freed_count_a_link_once_and_one_that_stays_not_at_all(dumps):
    object_size = place(dumps, HASHES[2]).stat().st_size
    os.link("data/epochs/4/features.zarr/c", "elsewhere")
    with planned(every=None, first=True, last=True, keep=None, own_cache=False) as plan:
        assert [plan.bytes_of([dump]) - object_size for dump in plan.dumps] == [1000, 1000, 0]
        assert plan.bytes_of(plan.dumps) == 2000 + 3 * object_size
    assert len(files(dumps)) == 10  # nothing was done


def test_a_second_prune_adds_to_the_list_and_a_dump_that_is_back_leaves_it(dumps):
    prune(every=2)
    make_dump(dumps, 3, HASHES[3])
    plan = prune(keep="3,4")
    assert [dump.epoch for dump in plan.dumps] == [2]
    assert list(read_pruned()) == ["data/epochs/2/features.zarr"]
    assert prune(keep="3,4").pruned_before == [2]


def test_entries_of_other_contents_leave_the_list(dumps):
    write_pruned({"data/epochs/2/features.zarr": "f" * 32 + ".dir", "data/epochs/9/features.zarr": "e" * 32 + ".dir"})
    prune(keep="2,3")
    assert list(read_pruned()) == ["data/epochs/4/features.zarr"]


def test_a_prune_that_was_killed_is_finished_by_the_next(dumps, monkeypatch):
    from deepcluster import pruning

    def killed(path):
        shutil.rmtree(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pruning.artifacts, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            prune()
    assert list(read_pruned()) == [f"data/epochs/{epoch}/features.zarr" for epoch in (2, 3, 4)]
    plan = prune()
    assert [(dump.epoch, len(dump.files), len(dump.objects)) for dump in plan.dumps] == [
        (2, 0, 2),
        (3, 1, 2),
        (4, 1, 2),
    ]
    assert len(files(dumps)) == 4


def test_killed_within_the_cache_it_still_knows_what_is_left(dumps, monkeypatch):
    unlink, gone = Path.unlink, []

    def killed(path, *arguments, **options):
        unlink(path, *arguments, **options)
        if dumps in path.parents:
            gone.append(path)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            prune()
    assert len(gone) == 1
    assert prune().dumps[0].epoch == 2
    assert len(files(dumps)) == 4


class TestWhatSomethingElseNeedsStays:
    def kept(self, dumps, who, stays=(2,)):
        plan = prune()
        assert plan.needed == dict.fromkeys(stays, who)
        assert [dump.epoch for dump in plan.dumps] == [epoch for epoch in (2, 3, 4) if epoch not in stays]
        for epoch in stays:
            assert tmp(f"data/epochs/{epoch}/features.zarr/c").exists()
            assert all(place(dumps, md5).exists() for md5 in (HASHES[epoch], *contents(dumps, HASHES[epoch])))

    def elsewhere(self, name, *, hashes=None):
        """A branch on which dvc.lock names only the dump of epoch 2, of the same content."""
        git("checkout", "--quiet", "-b", name)
        tmp("dvc.lock").write_text(lock_text(hashes or {2: HASHES[2]}))
        commit()

    def test_a_branch(self, dumps):
        self.elsewhere("other")
        git("checkout", "--quiet", "main")
        self.kept(dumps, "other")

    def test_a_commit_that_a_branch_has_left_behind(self, dumps):
        self.elsewhere("other")
        sha = git("rev-parse", "HEAD").strip()
        tmp("dvc.lock").write_text(lock_text({7: "a" * 32 + ".dir"}))
        commit()
        git("checkout", "--quiet", "main")
        self.kept(dumps, f"commit {sha[:7]}")

    def test_an_experiment(self, dumps):
        self.elsewhere("other")
        git("update-ref", "refs/exps/ab/cdef/lucid-moon", "HEAD")
        git("checkout", "--quiet", "main")
        git("branch", "--quiet", "-D", "other")
        self.kept(dumps, "exps/ab/cdef/lucid-moon")

    def test_a_tag_even_of_head(self, dumps):
        git("tag", "--annotate", "v1", "--message", "first")
        self.kept(dumps, "v1", stays=(2, 3, 4))

    def test_not_the_history_of_head_nor_a_branch_in_it(self, dumps):
        git("branch", "older")
        commit("later")
        self.kept(dumps, None, stays=())

    def test_another_artifact_of_the_workspace(self, dumps):
        text = tmp("dvc.lock").read_text()
        tmp("dvc.lock").write_text(
            f"{text}  other:\n    cmd: x\n    outs:\n    - path: copy\n      hash: md5\n      md5: {HASHES[2]}\n"
        )
        self.kept(dumps, "copy")

    def test_a_kept_epoch_with_the_same_features(self, dumps):
        tmp("dvc.lock").write_text(lock_text(HASHES | {1: HASHES[2]}))
        self.kept(dumps, "data/epochs/1/features.zarr")

    @pytest.mark.parametrize("file", [str(COPIES / "seed-3/dvc.lock"), ".dvc/tmp/exps/tmp1/dvc.lock", "x/raw.dvc"])
    def test_a_copy_of_the_project_or_a_file_of_dvc(self, dumps, file):
        write(tmp(file), f"outs:\n- md5: {HASHES[2]}\n  path: raw\n")
        self.kept(dumps, file)

    def test_one_file_of_a_dump(self, dumps):
        (shared,) = contents(dumps, HASHES[3])
        write(tmp("raw.dvc"), f"outs:\n- md5: {shared}\n  path: raw\n")
        prune()
        assert not place(dumps, HASHES[3]).exists()
        assert place(dumps, shared).exists()

    def test_nothing_is_deleted_where_git_cannot_tell(self, dumps):
        tmp(".git/refs/heads/broken").write_text("0" * 39 + "1\n")
        with pytest.raises(UserError, match=r"^prune: `git .*` failed \(.*\); nothing was deleted$"):
            prune()
        assert len(files(dumps)) == 10


def test_a_cache_elsewhere_is_touched_only_on_request(dumps, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "cache"
    shutil.move(".dvc/cache", outside)
    tmp(".dvc/config").write_text(f"[cache]\n    dir = {outside}\n")
    with pytest.raises(
        UserError, match=r"lies outside of this project: others may need what is in it; --own-cache says"
    ):
        prune()
    assert len(files(outside)) == 10
    prune(own_cache=True)
    assert len(files(outside)) == 4


def test_a_lock_cut_short_is_mended_before_it_is_read(dumps, capsys):
    text = tmp("dvc.lock").read_text()
    tmp("dvc.lock").write_text(text[: text.rindex("hash: md5") + 4])
    prune()
    assert capsys.readouterr().out == "dvc.lock: left half written by a killed DVC; its 9 whole entries are kept\n"
    assert len(read_pruned()) == 3


def test_outside_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^params.yaml: not found; run this in the project's folder"):
        prune()


def test_beside_a_run_it_is_refused(dumps, monkeypatch):
    from deepcluster import pruning

    def busy():
        raise BusyError("process 7 is a `deepcluster run` in this project; wait until it has ended, or end it")

    monkeypatch.setattr(pruning, "only_run", busy)
    with pytest.raises(BusyError):
        prune()
    assert len(files(dumps)) == 10


def test_a_damaged_object_is_said_before_anything_goes(dumps):
    place(dumps, HASHES[3]).write_text("[")
    with pytest.raises(UserError, match=r"damaged; run `deepcluster check --repair` first$"):
        prune()
    assert tmp("data/epochs/2/features.zarr").exists()


def test_without_a_dump_there_is_nothing_to_prune(dumps):
    tmp("dvc.lock").unlink()
    with pytest.raises(UserError, match=r"^prune: dvc.lock has no feature dump yet; `deepcluster run` makes them$"):
        prune()


@pytest.mark.parametrize("text", ["[", "- a\n", "a: 1\n", "a:\n  b: c\n"])
def test_a_list_that_is_none(dumps, text):
    tmp("stages/pruned.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=r"^stages/pruned.yaml: not a list of pruned dumps; run `git checkout"):
        read_pruned()


class TestTheCommand:
    def test_it_asks_and_deletes_only_on_yes(self, dumps, outcome, monkeypatch):
        import typer

        status, _, err = outcome("prune")
        assert (status, err) == (2, "error: prune: nobody can be asked here; --yes deletes, --dry-run only looks\n")
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr(typer, "confirm", lambda text: False)
        assert outcome("prune")[0] == 0
        assert len(files(dumps)) == 10
        monkeypatch.setattr(typer, "confirm", lambda text: True)
        assert outcome("prune")[0] == 0
        assert len(files(dumps)) == 4

    def test_a_dry_run_says_the_same_and_does_nothing(self, dumps, outcome):
        size = 1000 + place(dumps, HASHES[2]).stat().st_size
        write(tmp("raw.dvc"), f"outs:\n- md5: {HASHES[4]}\n  path: raw\n")
        said = [
            f"data/epochs/2/features.zarr: {size:,} bytes",
            f"data/epochs/3/features.zarr: {size:,} bytes",
            "epoch 4 stays: raw.dvc has the same dump",
            f"2 feature dumps to free, {2 * size:,} bytes; kept: 1, 5",
        ]
        assert outcome("prune", "--dry-run")[1].splitlines() == said
        assert len(files(dumps)) == 10
        freed = "freed; stages/pruned.yaml lists them: keep it in git"
        assert outcome("prune", "--yes")[1].splitlines() == [*said, freed]
        assert outcome("prune", "--yes")[1].splitlines() == [
            "epoch 4 stays: raw.dvc has the same dump",
            "pruned before: 2 to 3",
            "0 feature dumps to free, 0 bytes; kept: 1, 5",
        ]


def test_bytes_of_nothing():
    assert Plan([], [1], {}, []).bytes_of([Dump(2, tmp("x"), "", [], [])]) == 0


@pytest.fixture
def pruned(project, here):
    """A copy of the finished run of two epochs without the dump of epoch 1, and that dump's digests."""
    before = project.digests("data/epochs/1/features.zarr")
    here(project, "prune", "--no-first", "--yes")
    assert project.digests("data/epochs/1/features.zarr") == {}
    return project, before


class TestAfterwards:
    def test_runs_have_nothing_to_do_and_status_tells_what_is_missing(self, pruned, here):
        project, _ = pruned
        lock = (project.root / "dvc.lock").read_text()
        assert "everything is up to date" in here(project, "run")
        assert project.digests("data/epochs/1/features.zarr") == {}
        assert json.loads(project.dvc("status", "--json").stdout) == {
            "extract@1": [{"changed outs": {"data/epochs/1/features.zarr": "not in cache"}}],
            "pca@1": [{"changed deps": {"data/epochs/1/features.zarr": "deleted"}}],
        }
        assert project.repro("--allow-missing") == []
        assert (project.root / "dvc.lock").read_text() == lock

    @pytest.mark.slow
    def test_a_plain_repro_makes_the_dump_again_and_nothing_after_it(self, pruned):
        project, before = pruned
        assert project.repro("cluster@1") == ["extract@1"]
        assert project.digests("data/epochs/1/features.zarr") == before

    def test_run_brings_back_what_it_is_asked_for(self, pruned, here):
        project, before = pruned
        assert ran_in_process(here(project, "run", "extract@1")) == ["extract@1"]
        assert project.digests("data/epochs/1/features.zarr") == before
        assert "up to date" in project.dvc("status").stdout

    def test_a_dump_that_a_stage_needs_is_made_first(self, pruned, here):
        project, _ = pruned
        project.set_params(pca__components=3)
        assert ran_in_process(here(project, "run", "pca@1")) == ["extract@1", "pca@1"]

    def test_what_was_made_of_it_can_be_lost_too(self, pruned, here):
        project, _ = pruned
        shutil.rmtree(project.root / "data/epochs/1/pca.zarr")
        assert here(project, "run", "pca@1") == "1 restored from the cache\n"
        assert (project.root / "data/epochs/1/pca.zarr").exists()
        assert not (project.root / "data/epochs/1/features.zarr").exists()

    def test_show_and_compare_say_so(self, pruned, here):
        project, _ = pruned
        line = (
            "data/epochs/1/features.zarr: pruned by `deepcluster prune`; `deepcluster run extract@1` makes it again, "
            "with the same bytes, and `dvc pull data/epochs/1/features.zarr` fetches it where a remote has it"
        )
        assert here(project, "show", "features", "--epoch", "1", status=2) == f"error: {line}\n"
        assert "data/epochs/2/features.zarr" in here(project, "show", "features")
        assert json.loads(here(project, "compare", "1", "2", "--json"))["cka_problem"] == line
        project.commit("pruned")
        shown = here(project, "show", "features", "--epoch", "1", "--rev", "HEAD", status=2)
        assert shown == f"error: HEAD: {line} with HEAD checked out\n"

"""What DVC makes of the pipeline: which stages run when, and that the same settings give the same bytes.

Where DVC has many stages to run, the ordinary tests let `deepcluster run` call them in this process: DVC decides what
runs as in `dvc repro` (tests/test_runner.py), without a process of seconds for each. The slow ones do the same by
`dvc repro`.
"""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EPOCH_STAGES, IMAGES, Project, ran
from ruamel.yaml import YAML

from deepcluster.headline import scores

FINAL = ["evaluate", "report"]
FINAL_FOLDERS = ("data/evaluation", "data/report")
RESULTS = ("data/epochs", "data/history", "data/evaluation", "data/report")


def epochs(*numbers: int) -> list[str]:
    """The stages of these epochs, in order."""
    return [f"{stage}@{epoch}" for epoch in numbers for stage in EPOCH_STAGES]


def lock(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(project.root / "dvc.lock")
    return found


Reproduce = Callable[[Project], list[str]]


@pytest.fixture(params=["run", pytest.param("repro", marks=pytest.mark.slow)])  # slow: a process for each stage
def reproduce(request: pytest.FixtureRequest, here: Callable[..., str]) -> Reproduce:
    """Brings a project up to date by `deepcluster run` or by `dvc repro`; the stages that ran, in order."""
    if request.param == "repro":
        return Project.repro
    return lambda project: re.findall(r"^\[\d+:\d\d\] (.+)$", here(project, "run"), flags=re.MULTILINE)


def clean(project: Project) -> bool:
    return project.dvc("status").stdout.strip() == "Data and pipelines are up to date."


def forget_cache(project: Project) -> None:
    """No artifact and no former run can come back from DVC's cache."""
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root / ".dvc/tmp", ignore_errors=True)


def delete_last_epoch(project: Project) -> None:
    for folder in ("data/epochs/2", "data/history/2", "data/evaluation", "data/report"):
        shutil.rmtree(project.root / folder)


class TestFinishedRun:
    def test_nothing_is_stale_and_nothing_runs_again(self, finished):
        assert clean(finished)
        again = finished.dvc("repro")
        assert ran(again) == []
        assert "up to date" in again.stdout

    def test_git_sees_the_lock_file_only(self, finished):
        assert finished.run("git", "status", "--short").stdout == "?? dvc.lock\n"

    def test_every_artifact_of_every_epoch_is_there(self, finished):
        found = {str(Path(path).parent) for path in finished.digests()}
        for epoch in (1, 2):
            for name in ("features.zarr", "pca.zarr", "checkpoint"):
                assert f"data/epochs/{epoch}/{name}" in found
            assert f"data/history/{epoch}/clusters.zarr" in found
        assert {"data/evaluation", "data/report", "data/dataset/images.zarr", "data/dataset/targets.zarr"} <= found
        rows = (finished.root / "data/evaluation/clusters.csv").read_text().splitlines()
        assert len(rows) == IMAGES + 1

    def test_dag_shows_every_stage(self, finished):
        text = finished.dvc("dag", "--mermaid").stdout
        assert text.startswith("flowchart TD")
        for name in ("prepare", "initialise", *epochs(1, 2), *FINAL):
            assert f'["{name}"]' in text

    def test_metrics_and_plots(self, finished, tmp_path):
        (shown,) = json.loads(finished.dvc("metrics", "show", "--json").stdout)[""]["data"].values()
        assert shown["data"] == scores(json.loads((finished.root / "data/evaluation/metrics.json").read_text()))
        assert shown["data"]["epoch"] == 2
        assert all(isinstance(value, int | float) for value in shown["data"].values())  # so one short row
        finished.dvc("plots", "show", "--out", str(tmp_path / "plots"))
        page = html.unescape((tmp_path / "plots/index.html").read_text())
        for title in ("Pseudo-labels against the true labels", "Training loss", "nmi_previous"):
            assert title in page

    def test_summary(self, finished):
        lines = finished.run("deepcluster", "summary").stdout.splitlines()
        assert lines[0].split()[:2] == ["epoch", "nmi"]
        assert [line.split()[0] for line in lines[1:3]] == ["1", "2"]


class TestGrowing:
    def test_only_the_new_epoch_and_the_final_stages_run_and_regrowing_runs_nothing(self, project, reproduce):
        two = project.digests()
        project.run("deepcluster", "plan", "--epochs", "3")
        assert reproduce(project) == [*epochs(3), *FINAL]
        three = project.digests()
        kept = {path: digest for path, digest in two.items() if not path.startswith(FINAL_FOLDERS)}
        assert kept.items() <= three.items()
        assert clean(project)

        project.run("deepcluster", "plan", "--epochs", "2")
        assert set(reproduce(project)) <= set(FINAL)
        assert project.digests("data/history") == {path: two[path] for path in two if path.startswith("data/history")}
        assert {
            path: three[path] for path in three if path.startswith("data/epochs/3")
        }.items() <= project.digests().items()
        assert project.digests(*FINAL_FOLDERS) == {path: two[path] for path in two if path.startswith(FINAL_FOLDERS)}
        assert clean(project)

        project.run("deepcluster", "plan", "--epochs", "3")
        assert set(reproduce(project)) <= set(FINAL)
        assert project.digests() == three
        assert clean(project)

    @pytest.mark.slow
    def test_from_10_to_12_only_the_new_epochs_are_stale(self, unstarted, tmp_path):
        """Without computing anything: stand-ins for the artifacts of ten epochs, which DVC is told to accept."""
        project = unstarted.clone(tmp_path / "ten epochs")
        project.run("deepcluster", "plan", "--epochs", "10")
        definitions = YAML(typ="safe").load(project.root / "dvc.yaml")["stages"]
        for name, definition in definitions.items():
            do = definition.get("do", definition)
            outs = [out for kind in ("outs", "metrics", "plots") for out in do.get(kind, [])]
            for epoch in range(1, 11) if "do" in definition else [0]:
                for out in outs:
                    path = project.root / (out if isinstance(out, str) else next(iter(out))).replace(
                        "${key}", str(epoch)
                    )
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(
                        f"epoch,nmi\n{name},{epoch}\n" if path.suffix == ".csv" else json.dumps([name, epoch])
                    )
        project.dvc("commit", "--force")
        assert clean(project)
        project.run("deepcluster", "plan", "--epochs", "12")
        stale = json.loads(project.dvc("status", "--json").stdout)
        assert set(stale) == {*epochs(11, 12), *FINAL}

    @pytest.mark.slow
    def test_from_10_to_12_only_the_new_epochs_run(self, project):
        project.run("deepcluster", "plan", "--epochs", "10")
        assert project.repro() == [*epochs(*range(3, 11)), *FINAL]
        ten = project.digests("data/history")
        project.run("deepcluster", "plan", "--epochs", "12")
        assert project.repro() == [*epochs(11, 12), *FINAL]
        assert ten.items() <= project.digests("data/history").items()
        project.run("deepcluster", "plan", "--epochs", "10")
        project.repro()
        project.run("deepcluster", "plan", "--epochs", "12")
        assert set(project.repro()) <= set(FINAL)


class TestStaleSchedule:
    def remedy(self, asked: int) -> str:
        text = (
            f"params.yaml asks for {asked} epochs, stages/schedule.yaml unrolls 2; run `deepcluster plan`, then go on"
        )
        return f"error: {text}"

    def test_stops_the_first_stage_of_a_fresh_clone(self, unstarted, tmp_path):
        project = unstarted.clone(tmp_path / "a clone")
        project.set_params(epochs=3)
        found = project.dvc("repro", status=None)
        assert found.returncode != 0
        assert found.stderr.splitlines()[0] == self.remedy(3)
        assert ran(found) == ["prepare"]
        assert project.digests() == {}
        assert not (project.root / "dvc.lock").exists()

    @pytest.mark.slow
    def test_stops_a_finished_run_and_loses_nothing(self, project):
        before, locked = project.digests(), (project.root / "dvc.lock").read_bytes()
        project.set_params(epochs=1)
        found = project.dvc("repro", status=None)
        assert found.returncode != 0
        assert found.stderr.splitlines()[0] == self.remedy(1)
        assert ran(found) == ["evaluate"]
        assert project.digests() == before
        assert (project.root / "dvc.lock").read_bytes() == locked
        project.set_params(epochs=2)
        assert clean(project)


class TestPartsOfARun:
    def test_a_target_goes_only_that_far(self, project):
        original = project.digests()
        shutil.rmtree(project.root / "data")
        (project.root / "dvc.lock").unlink()
        project.dvc("repro", "train@1")  # from the run-cache
        assert set(lock(project)["stages"]) == {"prepare", "initialise", *epochs(1)}
        found = project.digests()
        assert {path for path in original if path.startswith(("data/epochs/1/", "data/history/1/"))} <= found.keys()
        assert found.items() <= original.items()
        assert {path.split("/")[2] for path in found if path.startswith(("data/epochs", "data/history"))} == {"0", "1"}
        assert not (project.root / "data/evaluation").exists()

    @pytest.mark.slow
    def test_one_stage_forced_gives_the_same_bytes(self, project):
        before, locked = project.digests(), (project.root / "dvc.lock").read_bytes()
        assert project.repro("--single-item", "--force", "extract@2") == ["extract@2"]
        assert project.digests() == before
        assert (project.root / "dvc.lock").read_bytes() == locked
        assert clean(project)

    def test_a_setting_reruns_the_stages_that_read_it_and_those_after(self, project, reproduce):
        project.set_params(evaluate__gallery=3)
        before = project.digests("data/epochs", "data/history")
        assert reproduce(project) == FINAL
        assert project.digests("data/epochs", "data/history") == before

    def test_a_comment_and_an_unread_file_rerun_nothing(self, project):
        params = project.root / "params.yaml"
        params.write_text("# a remark\n" + params.read_text().replace("seed: 1 ", "seed:   1 "))
        (project.root / "deepcluster/timings.py").write_text("# rewritten\n")
        assert [stage for stage in json.loads(project.dvc("status", "--json").stdout) if stage != "report"] == []


class TestExperiments:
    @pytest.fixture
    def short(self, project, here):
        """The finished run cut down to one epoch, in git."""
        here(project, "plan", "--epochs", "1")
        here(project, "run")
        project.commit("One epoch")
        return project

    def shown(self, project: Project) -> dict[str, Any]:
        """params.yaml of the one experiment that there is."""
        (branch,) = json.loads(project.dvc("exp", "show", "--json").stdout)[1]["experiments"]
        (revision,) = branch["revs"]
        assert revision["error"] is None
        found: dict[str, Any] = revision["data"]["params"]["params.yaml"]["data"]
        return found

    def test_in_the_workspace(self, short):
        found = short.dvc("exp", "run", "--set-param", "cluster.k=3", "train@1")  # all: test_recipes, slow
        assert ran(found) == ["cluster@1", "train@1"]
        sizes = json.loads((short.root / "data/history/1/clusters.zarr/zarr.json").read_text())["attributes"]["params"]
        assert sizes["k"] == 3
        assert self.shown(short)["cluster"]["k"] == 3

    @pytest.mark.slow
    def test_in_a_temporary_copy_with_that_copy_s_code(self, short):
        before = short.digests()
        stage = short.root / "stages/cluster.py"
        print_place = 'if __name__ == "__main__":\n    print("code:", __import__("deepcluster").__file__)\n    main('
        stage.write_text(stage.read_text().replace('if __name__ == "__main__":\n    main(', print_place))
        found = short.dvc("exp", "run", "--temp", "--set-param", "cluster.k=3", "cluster@1")
        assert ran(found) == ["cluster@1"]
        (place,) = [line for line in found.stdout.splitlines() if line.startswith("code: ")]
        assert place.startswith(f"code: {short.root}/.dvc/tmp/exps/")
        assert self.shown(short)["cluster"]["k"] == 3
        assert short.digests() == before

    @pytest.mark.slow
    def test_images_outside_of_git_are_found_from_a_temporary_copy(self, short):
        found = short.dvc("exp", "run", "--temp", "--set-param", "data.max_unreadable=0.5", "prepare")
        assert ran(found) == ["prepare"]
        assert f"{IMAGES} images of 8x8" in found.stdout


def test_push_clone_pull(project, tmp_path):
    (tmp_path / "a store").mkdir()
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "a store"))
    project.commit("A finished run")
    project.dvc("push")
    clone = project.clone(tmp_path / "a clone")
    assert clone.digests() == {}
    clone.dvc("pull")
    assert clone.digests() == project.digests()
    assert clean(clone)
    assert clone.repro() == []


class TestResuming:
    """A run whose last epoch is gone ends with the bytes of an uninterrupted one."""

    @pytest.mark.slow  # twelve processes; tests/test_runner.py has a second run, by `deepcluster run`
    def test_a_second_run_from_nothing_known_makes_the_same_artifacts_and_lock_file(self, project):
        before, locked = project.digests(*RESULTS), (project.root / "dvc.lock").read_bytes()
        delete_last_epoch(project)
        forget_cache(project)
        (project.root / "dvc.lock").unlink()
        assert project.repro() == ["prepare", "initialise", *epochs(1, 2), *FINAL]
        assert project.digests(*RESULTS) == before
        assert (project.root / "dvc.lock").read_bytes() == locked

    def test_the_last_epoch_is_computed_again_to_the_same_bytes(self, project, reproduce):
        before, locked = project.digests(*RESULTS), lock(project)
        delete_last_epoch(project)
        shutil.rmtree(project.root / ".dvc/cache/runs")
        kept = {name: entry for name, entry in locked["stages"].items() if name not in (*epochs(2), *FINAL)}
        with (project.root / "dvc.lock").open("w") as file:
            YAML(typ="safe").dump(locked | {"stages": kept}, file)
        assert reproduce(project) == [*epochs(2), *FINAL]
        assert project.digests(*RESULTS) == before
        assert lock(project) == locked

    def test_with_lock_file_and_cache_no_epoch_is_computed_again(self, project, reproduce):
        before, locked = project.digests(), lock(project)
        delete_last_epoch(project)
        assert set(reproduce(project)) <= set(FINAL)
        assert project.digests() == before
        assert lock(project) == locked


class TestUncachedDumps:
    """The documented switch: `cache: false` at the extract stage."""

    @pytest.mark.slow
    def test_dumps_stay_in_the_workspace_and_out_of_the_cache(self, unstarted, tmp_path, reproduce, here):
        project = unstarted.clone(tmp_path / "uncached")
        text = (project.root / "dvc.yaml").read_text()
        switch = "`- data/epochs/${key}/features.zarr: {cache: false}`.\n"
        assert text.count(switch) == 1, "the comment above the output says how"
        above, below = text.split(switch)
        below = below.replace("features.zarr\n", "features.zarr: {cache: false}\n", 1)
        (project.root / "dvc.yaml").write_text(above + switch + below)
        assert reproduce(project) == ["prepare", "initialise", *epochs(1, 2), *FINAL]
        assert clean(project)
        stages = lock(project)["stages"]
        (dump,), (reduced,) = stages["extract@2"]["outs"], stages["pca@2"]["outs"]
        assert self.cached(project, reduced["md5"]), "else the next line would prove nothing"
        assert not self.cached(project, dump["md5"])
        assert project.repro() == []
        assert "up to date" in here(project, "run")

        before = project.digests()
        shutil.rmtree(project.root / "data/epochs/2/features.zarr")
        assert project.repro() == ["extract@2"]  # computed again, and as it was
        assert project.digests() == before
        assert clean(project)

    def cached(self, project: Project, digest: str) -> bool:
        return (project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).exists()

"""`deepcluster seeds`: several runs in copies of the project, which itself stays as it is."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import edit_params

from deepcluster import artifacts, layout, seeds
from deepcluster.errors import UserError
from deepcluster.params import load_params

COPIES = Path("data/seeds", "work")

METRICS = {
    "final": {"nmi": 0.5, "ari": 0.25, "accuracy": 0.75},
    "baselines": {"pixels": {"nmi": 0.125, "ari": 0.0, "accuracy": 0.5}},
    "clusters": {"smallest": 3, "largest": 9, "empty": 0, "effective_k": 1.5},
    "knn": {"final": {"k20": 0.875}, "baselines": {}},
}
ONE_OF_THE_TWO = "seeds: give a number of seeds, as in `deepcluster seeds 5`, or --seeds 3,7,9; one of the two"
KEPT = "finished before with the same params and code; kept"


class TestParse:
    def test_a_count_or_a_list(self):
        assert seeds.parse_seeds(3, None) == [1, 2, 3]
        assert seeds.parse_seeds(None, "9, 3,7,3") == [3, 7, 9]

    @pytest.mark.parametrize(
        ("count", "listed", "expected"),
        [
            (
                None,
                None,
                "seeds: give a number of seeds, as in `deepcluster seeds 5`, or --seeds 3,7,9; one of the two",
            ),
            (2, "1", "seeds: give a number of seeds, as in `deepcluster seeds 5`, or --seeds 3,7,9; one of the two"),
            (0, None, "seeds: the number of seeds must be >= 1; got 0"),
            (
                None,
                "1,two",
                "--seeds: must be whole numbers from 0 to 2147483647 with commas between, as in 3,7,9; got '1,two'",
            ),
        ],
    )
    def test_mistakes(self, count, listed, expected):
        with pytest.raises(UserError) as caught:
            seeds.parse_seeds(count, listed)
        assert str(caught.value) == expected


class TestSummary:
    def test_by_hand(self):
        """Of 1, 2, 6: mean 3, sample variance (4 + 1 + 9) / 2 = 7, median 2."""
        found = seeds.summarised([{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 5.0}])
        assert found == {
            "mean": {"a": 3.0, "b": 5.0},
            "std": {"a": pytest.approx(7**0.5), "b": 0.0},
            "median": {"a": 2.0, "b": 5.0},
            "worst": {"a": 1.0, "b": 5.0},
        }

    def test_one_seed_has_no_spread(self):
        assert seeds.summarised([{"a": 1.0}]).keys() == {"mean", "median", "worst"}

    def test_numbers_of_a_run(self):
        expected = {"nmi": 0.5, "ari": 0.25, "accuracy": 0.75, "knn_20": 0.875}
        assert seeds.numbers_of(METRICS) == expected | {"pixels_nmi": 0.125, "pixels_accuracy": 0.5}
        unlabelled = METRICS | {"final": {}, "baselines": {}, "knn": {}}
        assert seeds.numbers_of(unlabelled) == {"effective_k": 1.5, "smallest": 3.0, "largest": 9.0}


class TestWithStandIns:
    """The runs themselves replaced by a metrics file, or by an exit code."""

    @pytest.fixture
    def runs(self, workspace, monkeypatch):
        """What was started, and what each seed answers: metrics, an exit code or an exception."""
        for name in (".dvc/config", "dvc.yaml"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text("")
        state = SimpleNamespace(started=[], answers={})

        def run(command: list[str], cwd: Path, **_: object) -> SimpleNamespace:
            seed = int(command[-1].removeprefix("seed="))
            assert command == [sys.executable, "-m", "deepcluster", "run", "evaluate", "-S", f"seed={seed}"]
            assert (cwd / "deepcluster/cli.py").is_file()
            state.started.append(seed)
            answer = state.answers.get(seed, METRICS)
            if isinstance(answer, BaseException):
                raise answer
            if isinstance(answer, dict):
                (cwd / layout.EVALUATION).mkdir(parents=True)
                artifacts.write_json(cwd / layout.EVALUATION / "metrics.json", answer)
            return SimpleNamespace(returncode=0 if isinstance(answer, dict) else answer)

        monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(run=run))
        monkeypatch.setattr(seeds, "_settle_dvc", lambda work: None)
        return state

    def test_finished_seeds_are_kept_until_params_change(self, runs, outcome):
        assert outcome("seeds", "2")[0] == 0
        status, out, _ = outcome("seeds", "--seeds", "2,4")
        assert (status, runs.started) == (0, [1, 2, 4])
        assert out.splitlines()[:3] == [
            "seed 2: finished before with the same params and code; kept",
            f"seed 4 (2 of 2), in {COPIES}/seed-4",
            "seed 4: nmi 0.5000, ari 0.2500, accuracy 0.7500",
        ]
        edit_params(Path("params.yaml"), {"seed": 77})
        outcome("seeds", "2")
        assert runs.started == [1, 2, 4]
        edit_params(Path("params.yaml"), {"cluster.k": 3})
        outcome("seeds", "2")
        assert runs.started == [1, 2, 4, 1, 2]

    def test_a_failure_is_named_and_the_others_go_on(self, runs, outcome):
        runs.answers = {1: 2, 3: METRICS | {"final": {"nmi": 0.25, "ari": 0.0, "accuracy": 0.5}}}
        status, out, err = outcome("seeds", "3")
        assert (status, runs.started) == (2, [1, 2, 3])
        message = "why stands above. What is finished is kept; the same command goes on"
        assert err == f"error: seeds: failed: 1 (exit code 2); {message}\n"
        assert [line.split()[:4] for line in out.splitlines()[-9:-2]] == [
            ["seed", "nmi", "ari", "accuracy"],
            ["2", "0.5000", "0.2500", "0.7500"],
            ["3", "0.2500", "0.0000", "0.5000"],
            ["mean", "0.3750", "0.1250", "0.6250"],
            ["std", "0.1768", "0.1768", "0.1768"],
            ["median", "0.3750", "0.1250", "0.6250"],
            ["worst", "0.2500", "0.0000", "0.5000"],
        ]
        assert layout.seed_work(1).is_dir()
        assert not layout.seed_work(2).exists()
        assert json.loads((layout.SEEDS / "seeds.json").read_text())["failed"] == {"1": 2}

    def test_interrupted(self, runs, outcome):
        runs.answers = {2: KeyboardInterrupt()}
        assert outcome("seeds", "3")[0] == 130
        assert [row["seed"] for row in csv.DictReader((layout.SEEDS / "seeds.csv").open())][:2] == ["1", "mean"]
        runs.answers = {}
        assert outcome("seeds", "3")[0] == 0
        assert runs.started == [1, 2, 2, 3]

    def test_json(self, runs, outcome):
        status, out, _ = outcome("seeds", "2", "--json")
        found = json.loads(out)
        assert (status, found["seeds"]["2"]["accuracy"], found["summary"]["worst"]["knn_20"]) == (0, 0.75, 0.875)
        assert "seed" not in found["params"]

    def test_what_params_name_is_linked(self, runs, tmp_path):
        work = layout.seed_work(1)
        (tmp_path / "w.pth").touch()
        Path("some images").mkdir()
        Path("w.pth").touch()
        edit_params(Path("params.yaml"), {"data.root": "some images", "model.weights": "w.pth"})
        seeds._copy_project(work, load_params())
        assert (work / "some images").resolve() == Path("some images").resolve()
        assert (work / "w.pth").resolve() == Path("w.pth").resolve()
        edit_params(Path("params.yaml"), {"data.root": "../../../../far"})
        with pytest.raises(UserError) as caught:
            seeds._copy_project(work, load_params())
        assert str(caught.value) == (
            "seeds: ../../../../far in params.yaml leads out of the copies in data/seeds; make it absolute"
        )

    def test_not_in_a_project(self, runs, outcome):
        Path("dvc.yaml").unlink()
        expected = "seeds: dvc.yaml: not found; run this in the project's folder, under `dvc init`"
        assert outcome("seeds", "1")[2] == f"error: {expected}\n"

    def test_a_copy_that_fails(self, runs, outcome, monkeypatch):
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(seeds.shutil, "copytree", full)
        expected = f"seeds: the project cannot be copied into {COPIES}/seed-1: [Errno 28] No space left on device"
        assert outcome("seeds", "1")[2] == f"error: {expected}\n"


def test_a_copy_shares_the_cache_and_is_no_git_repository(project, monkeypatch):
    monkeypatch.chdir(project.root)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    work = layout.seed_work(1)
    seeds._copy_project(work, load_params())
    settings = (work / ".dvc/config.local").read_text()
    assert "no_scm = true" in settings
    assert f"dir = {project.root / '.dvc/cache'}\n" in settings
    assert (work / "dvc.lock").read_bytes() == Path("dvc.lock").read_bytes()


@pytest.mark.slow
def test_real_runs_leave_the_project_as_it_is_and_share_its_cache(project):
    before, lock = project.digests(), (project.root / "dvc.lock").read_bytes()
    metrics = json.loads((project.root / "data/evaluation/metrics.json").read_text())
    first: subprocess.CompletedProcess[str] = project.run("deepcluster", "seeds", "2")
    assert "] prepare" not in first.stdout  # nor any stage of the seed that the project has run with
    assert first.stdout.count("] extract@1") == 1
    assert project.digests("data/dataset", "data/epochs", "data/history", "data/evaluation", "data/report") == before
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert project.run("git", "status", "--short").stdout == "?? dvc.lock\n"
    found = json.loads((project.root / "data/seeds/seeds.json").read_text())["seeds"]
    assert found["1"]["nmi"] == metrics["final"]["nmi"]  # the project's own seed
    assert found.keys() == {"1", "2"}
    assert json.loads((project.root / "data/seeds/seed-2.json").read_text())["params"]["seed"] == 2
    again = project.run("deepcluster", "seeds", "2").stdout.splitlines()
    assert [line.partition(": ")[2] for line in again[:2]] == 2 * [
        "finished before with the same params and code; kept"
    ]
    assert "Data and pipelines are up to date" in project.dvc("status").stdout

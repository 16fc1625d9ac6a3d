"""`deepcluster seeds`: the present params.yaml with several seeds, each in a copy of the project that shares its cache.

A copy is made of what the pipeline reads: dvc.yaml, dvc.lock, params.yaml, DVC's settings, and the code. Images and
weights that params.yaml names by a relative path are linked into it.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcluster import artifacts, layout
from deepcluster.errors import UserError
from deepcluster.headline import headline
from deepcluster.inspection.tables import BASELINES, Cells, print_table, value_text
from deepcluster.params import PARAMS_FILE, Params, load_params

LARGEST_SEED = 2**31 - 1
FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config")
PACKAGES = ("stages", "deepcluster")
OF_BASELINES = ("nmi", "accuracy")
UNLABELLED = ("effective_k", "smallest", "largest")

Numbers = dict[str, float]


def parse_seeds(count: int | None, listed: str | None) -> list[int]:
    """[1, 2, 3] of a count of 3, or [3, 7] of "7,3". UserError unless exactly one is given, and right."""
    if (count is None) == (listed is None):
        raise UserError("seeds: give a number of seeds, as in `deepcluster seeds 5`, or --seeds 3,7,9; one of the two")
    if count is not None:
        if count < 1:
            raise UserError(f"seeds: the number of seeds must be >= 1; got {count}")
        return list(range(1, count + 1))
    parts = [part.strip() for part in str(listed).split(",")]
    if not all(part.isdecimal() and int(part) <= LARGEST_SEED for part in parts):
        raise UserError(
            f"--seeds: must be whole numbers from 0 to {LARGEST_SEED} with commas between, as in 3,7,9; got {listed!r}"
        )
    return sorted({int(part) for part in parts})


def run_seeds(seeds: Sequence[int], *, as_json: bool = False) -> None:
    """Run, print and write; what is done so far is on disk after each seed. UserError names the seeds that failed."""
    params = load_params()
    for name in FILES:
        if name != ".dvcignore" and not Path(name).is_file():
            raise UserError(f"seeds: {name}: not found; run this in the project's folder, under `dvc init`")
    used, out = made_with(params), sys.stderr if as_json else sys.stdout
    found: dict[int, dict[str, Any]] = {}
    failed: dict[int, int] = {}
    for number, seed in enumerate(seeds, start=1):
        if (kept := _finished(seed, used)) is not None:
            print(f"seed {seed}: finished before with the same params and code; kept", file=out)
            found[seed] = kept
            continue
        print(f"seed {seed} ({number} of {len(seeds)}), in {layout.seed_work(seed)}", file=out, flush=True)
        result = _run(seed, params, used, quiet=as_json)
        if isinstance(result, int):
            failed[seed] = result
            continue
        found[seed] = result
        print(f"seed {seed}: {_in_words(numbers_of(result['metrics']))}", file=out, flush=True)
        _write(found, failed, params)
    if found:
        _write(found, failed, params)
        _print(found, failed, params, as_json=as_json)
    if failed:
        named = ", ".join(f"{seed} (exit code {code})" for seed, code in failed.items())
        raise UserError(f"seeds: failed: {named}; why stands above. What is finished is kept; the same command goes on")


def made_with(params: Params) -> str:
    """A sha256 over params, without the seed, and the code: what makes a finished seed still the right one."""
    digest = hashlib.sha256(json.dumps(params.model_dump(exclude={"seed"}), sort_keys=True).encode())
    for path in _code():
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def numbers_of(metrics: Mapping[str, Any]) -> Numbers:
    """What is compared between seeds: `headline`, and of each baseline NMI and accuracy; the sizes without targets."""
    found = headline(metrics)
    if not found:
        return {name: float(metrics["clusters"][name]) for name in UNLABELLED}
    for kind in BASELINES:
        scores = metrics["baselines"].get(kind, {})
        found |= {f"{kind}_{name}": scores[name] for name in OF_BASELINES if name in scores}
    return found


def summarised(rows: Sequence[Numbers]) -> dict[str, Numbers]:
    """mean, std (of a sample: n - 1; only from two seeds on), median and worst (the lowest) of each number."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row[name] for row in rows if name in row] for name in names}
    spread = {name: statistics.stdev(values) for name, values in columns.items() if len(values) > 1}
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        **({"std": spread} if spread else {}),
        "median": {name: statistics.median(values) for name, values in columns.items()},
        "worst": {name: min(values) for name, values in columns.items()},
    }


def _code() -> list[Path]:
    """dvc.yaml and the modules of the packages, sorted, that run here."""
    import stages

    folders = [Path(__file__).parent, Path(str(stages.__file__)).parent]
    return [Path("dvc.yaml"), *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def _finished(seed: int, used: str) -> dict[str, Any] | None:
    """What an earlier command found for this seed, if with the same params and code."""
    try:
        content: dict[str, Any] = json.loads(layout.seed_result(seed).read_text(encoding="utf-8"))
        return content if content["made_with"] == used else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(seed: int, params: Params, used: str, *, quiet: bool) -> dict[str, Any] | int:
    """The seed's result, published; or the exit code of the run that failed, whose copy stays to go on with."""
    work = layout.seed_work(seed)
    _copy_project(work, params)
    command = [sys.executable, "-m", "deepcluster", "run", "evaluate", "-S", f"seed={seed}"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=work, stdout=sys.stderr if quiet else None)  # noqa: S603 - ourselves
    if done.returncode:
        return done.returncode
    metrics = artifacts.read_json(work / layout.EVALUATION / "metrics.json", made_by="evaluate")
    result = {
        "seed": seed,
        "made_with": used,
        "seconds": round(time.perf_counter() - started, 1),
        "params": params.model_dump(mode="json") | {"seed": seed},
        "metrics": metrics,
    }
    artifacts.write_text(layout.seed_result(seed), json.dumps(result, indent=2) + "\n")
    artifacts.remove(work)
    return result


def _copy_project(work: Path, params: Params) -> None:
    """What the pipeline reads, into `work`; what an interrupted run left there stays. UserError if it cannot be."""
    try:
        for name in FILES:
            if Path(name).is_file():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, work / name)
        for name in PACKAGES:
            if Path(name).is_dir():
                shutil.rmtree(work / name, ignore_errors=True)
                shutil.copytree(name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
        if Path("dvc.lock").is_file() and not (work / "dvc.lock").exists():
            shutil.copyfile("dvc.lock", work / "dvc.lock")
        _link(work, params.data.root, folder=params.data.name not in ("digits", "folder"))
        if params.model.weights is not None:
            _link(work, params.model.weights)
    except (OSError, shutil.Error) as error:
        raise UserError(f"seeds: the project cannot be copied into {work}: {error}") from error
    _settle_dvc(work)


def _link(work: Path, path: str, *, folder: bool = False) -> None:
    """Make a relative path of params.yaml lead from the copy to what it names here; `folder`: made if it is missing."""
    named = Path(path).expanduser()
    if named.is_absolute():
        return
    if folder:
        named.mkdir(parents=True, exist_ok=True)
    place = Path(os.path.normpath(work / named))
    if not place.is_relative_to(layout.SEEDS):
        raise UserError(f"seeds: {path} in {PARAMS_FILE} leads out of the copies in {layout.SEEDS}; make it absolute")
    if named.exists() and not place.is_symlink() and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(named.resolve())


def _settle_dvc(work: Path) -> None:
    """The copy is no git repository, and shares this project's cache."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            cache = repo.cache.local_cache_dir  # with DVC's run-cache, which cache.local.path is below
    except DvcException as error:
        raise UserError(f"seeds: dvc: {error}") from error
    for key, value in (("core.no_scm", "true"), ("cache.dir", os.path.abspath(cache))):
        command = [sys.executable, "-m", "dvc", "config", "--local", key, value]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)  # noqa: S603 - dvc
        if done.returncode:
            raise UserError(f"seeds: dvc config in {work}: {' '.join(done.stderr.split())}")


def _content(found: Mapping[int, dict[str, Any]], failed: Mapping[int, int], params: Params) -> dict[str, Any]:
    rows = {seed: numbers_of(result["metrics"]) for seed, result in sorted(found.items())}
    return {
        "params": params.model_dump(mode="json", exclude={"seed"}),
        "seeds": rows,
        "seconds": {seed: result["seconds"] for seed, result in sorted(found.items())},
        "failed": dict(failed),
        "summary": summarised(list(rows.values())),
    }


def _write(found: Mapping[int, dict[str, Any]], failed: Mapping[int, int], params: Params) -> None:
    content = _content(found, failed, params)
    rows = {str(seed): row for seed, row in content["seeds"].items()} | content["summary"]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["seed", *content["summary"]["mean"]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"seed": name} | row for name, row in rows.items())
    artifacts.write_text(layout.SEEDS / "seeds.csv", text.getvalue())
    artifacts.write_text(layout.SEEDS / "seeds.json", json.dumps(content, indent=2) + "\n")


def _print(found: Mapping[int, dict[str, Any]], failed: Mapping[int, int], params: Params, *, as_json: bool) -> None:
    content = _content(found, failed, params)
    if as_json:
        print(json.dumps(content, indent=2))
        return
    names = [
        name for name in content["summary"]["mean"] if not name.startswith(tuple(f"{kind}_" for kind in BASELINES))
    ]
    rows = {str(seed): row for seed, row in content["seeds"].items()} | content["summary"]
    texts = [[title, *(value_text(name, row.get(name)) for name in names)] for title, row in rows.items()]
    print_table(Cells(["seed", *names], texts))
    print(f"\nTable with the baselines: {layout.SEEDS}/seeds.csv, .json")


def _in_words(numbers: Numbers) -> str:
    return ", ".join(f"{name} {value_text(name, value)}" for name, value in list(numbers.items())[:3])

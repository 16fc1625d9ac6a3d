"""docs/scale: files that clusters run; what can be known of them without one."""

import re
import shlex
import subprocess

import pytest
from conftest import CHECKOUT
from ruamel.yaml import YAML
from torch.distributed.run import get_args_parser

FOLDER = CHECKOUT / "docs/scale"
SCRIPTS = ("epochs.sh", "slurm.sbatch")
STAGES = ["extract", "pca", "cluster", "train"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name):
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)


def run(tmp_path, head: int) -> list[str]:
    """What epochs.sh runs for two epochs, with `echo` in the place of everything."""
    (tmp_path / "dvc").write_text("#!/bin/bash\necho dvc $@\n")
    (tmp_path / "dvc").chmod(0o755)
    environment = {"RUN": "echo torchrun", "HEAD": str(head), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", str(FOLDER / "epochs.sh"), "3", "4"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_stage_of_every_epoch_runs_and_one_machine_records_it(tmp_path):
    stages = [
        f"torchrun --rdzv-id {stage}-{epoch} -m stages.{stage} --epoch {epoch}" for epoch in (3, 4) for stage in STAGES
    ]
    assert run(tmp_path, head=0) == stages
    commits = [f"dvc commit --force extract@{epoch} pca@{epoch} cluster@{epoch} train@{epoch}" for epoch in (3, 4)]
    assert run(tmp_path, head=1) == [*stages[:4], commits[0], *stages[4:], commits[1]]


def torchruns() -> list[str]:
    """Every torchrun of the page and the files, its variables filled in."""
    texts = [(CHECKOUT / "docs/scale.md").read_text(), *((FOLDER / name).read_text() for name in SCRIPTS)]
    found = [line for text in texts for line in re.findall(r"torchrun (--[^;\n`#]+)", text.replace('"', ""))]
    return [re.sub(r"\$\w+", "2", line) for line in found]


def test_options_are_torchruns():
    assert len(torchruns()) >= 3
    for line in torchruns():
        own = line.partition(" -m ")[0]
        get_args_parser().parse_args([*shlex.split(own), "-m", "stages.train"])


def test_the_job_is_yaml_and_runs_the_script_on_as_many_workers_as_it_waits_for():
    job = YAML(typ="safe").load(FOLDER / "pytorchjob.yaml")
    spec, elastic = job["spec"], job["spec"]["elasticPolicy"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert worker["replicas"] == elastic["minReplicas"] == elastic["maxReplicas"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(spec["nprocPerNode"])
    subprocess.run(["bash", "-n", "-c", container["args"][0]], check=True)
    assert "docs/scale/epochs.sh 1 25" in container["args"][0]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["template"]["spec"]["volumes"]}


def test_links_on_the_page_lead_somewhere():
    text = (CHECKOUT / "docs/scale.md").read_text()
    targets = re.findall(r"\]\(([\w./-]+)\)", text)
    assert {"scale-cost.md", "resuming.md", "scale/slurm.sbatch"} <= set(targets)
    assert all((CHECKOUT / "docs" / target).is_file() for target in targets)

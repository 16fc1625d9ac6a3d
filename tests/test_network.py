"""No network: sockets are refused, and noted, in every process that a run starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT, edit_params

from deepcluster.projects.git import DVC_CONFIG

GUARD = """\
import sys

ASKED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind")


def refuse(event, arguments):
    if event in ASKED:
        with open({log!r}, "a") as file:
            file.write(f"{{event}} {{arguments!r}} {{sys.argv}}\\n")
        raise OSError("there is no network in this test")


sys.addaudithook(refuse)
"""


class Guarded:
    """Variables that put the guard into every Python process, and what it noted."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "asked for"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(GUARD.format(log=str(self.log)))
        self.environment = {"PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "", "DVC_TEST": "", "CI": ""}

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def guarded(tmp_path) -> Guarded:
    return Guarded(tmp_path / "a guard")


def test_the_guard_notices_and_so_do_processes_below(guarded):
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    child = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)"
    for number, program in enumerate((code, child), start=1):
        command, environment = [sys.executable, "-c", program], os.environ | guarded.environment
        failed = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert failed.returncode == 1
        assert "there is no network in this test" in failed.stderr
        assert len(guarded.asked) == number
        assert guarded.asked[-1].startswith(("socket.getaddrinfo ", "socket.connect "))


@pytest.mark.slow  # a run, and DVC's commands after it
def test_a_whole_run_and_dvc_itself_need_none(unstarted, tmp_path, guarded):
    project = unstarted.clone(tmp_path / "a clone")
    project.run("deepcluster", "plan", "--epochs", "1", **guarded.environment)
    ran = project.run("deepcluster", "run", **guarded.environment)
    assert "] report\n" in ran.stdout
    project.run("dvc", "repro", **guarded.environment)
    assert guarded.asked == []


@pytest.mark.slow  # it loads torchvision to be refused; what is said without a network, tests/test_fetch.py holds
def test_only_a_data_set_that_is_missing_asks(unstarted, tmp_path, guarded):
    """And without an answer one line says which files go where."""
    project = unstarted.clone(tmp_path / "a clone")
    edit_params(project.root / "params.yaml", {"data.name": "usps", "data.root": "raw"})
    failed = project.run("deepcluster", "prepare", status=2, **guarded.environment)
    assert failed.stderr.splitlines()[-1].startswith("error: usps is not in raw and could not be downloaded (")
    assert {line.split()[0] for line in guarded.asked} == {"socket.getaddrinfo"}


class TestDvc:
    """Its reports and its look for a newer version are turned off in every project's own settings."""

    def asks(self) -> tuple[bool, bool]:
        from dvc.analytics import is_enabled
        from dvc.updater import Updater

        return is_enabled(), Updater(".dvc/tmp").is_enabled()

    @pytest.fixture(autouse=True)
    def plain_environment(self, monkeypatch, tmp_path):
        for name in ("DVC_NO_ANALYTICS", "DVC_TEST", "CI"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
        monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "system"))

    @pytest.mark.parametrize(("settings", "asks"), [(DVC_CONFIG, (False, False)), ("", (True, True))])
    def test_with_these_settings_and_without(self, settings, asks, tmp_path, monkeypatch):
        (tmp_path / ".dvc").mkdir()
        (tmp_path / ".dvc/config").write_text(settings)
        monkeypatch.chdir(tmp_path)
        assert self.asks() == asks

    def test_they_are_those_of_this_project_and_of_new_ones(self):
        assert (CHECKOUT / ".dvc/config").read_text() == DVC_CONFIG

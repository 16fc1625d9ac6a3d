"""`deepcluster` runs the code of the project's folder."""

import os
import subprocess
import sys


def test_the_folder_s_own_code_runs_once_with_pythonsafepath(tmp_path):
    own = tmp_path / "deepcluster"
    own.mkdir()
    (own / "__init__.py").write_text("")
    (own / "__main__.py").write_text("import sys; print('own code', sys.argv[1:])")
    command = [sys.executable, "-c", "from deepcluster.__main__ import main; main()", "show", "a b"]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "own code ['show', 'a b']\n")

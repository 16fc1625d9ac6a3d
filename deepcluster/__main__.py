"""Entry point of the `deepcluster` command and of `python -m deepcluster`."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command with the code of the project's folder, where that has its own, as the stages of `dvc repro` do.

    An editable installation of one clone would otherwise run its code in every other one. PYTHONSAFEPATH, which
    keeps Python from looking in the folder where it starts, is not for that folder, nor for its stages.
    """
    own = Path("deepcluster/__main__.py")
    if own.is_file() and not own.samefile(__file__):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        os.execve(sys.executable, [sys.executable, "-m", "deepcluster", *sys.argv[1:]], environment)  # noqa: S606
    from deepcluster.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()

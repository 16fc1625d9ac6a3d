"""Entry point of the `deepcluster` command and of `python -m deepcluster`."""

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command with the code of the project's folder, where that has its own, as the stages of `dvc repro` do.

    An editable installation of one clone would otherwise run that clone's code in every other one.
    """
    own = Path("deepcluster/__main__.py")
    if own.is_file() and not own.samefile(__file__):
        os.execv(sys.executable, [sys.executable, "-m", "deepcluster", *sys.argv[1:]])  # noqa: S606 - the same program
    from deepcluster.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()

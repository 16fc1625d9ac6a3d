"""dvc.yaml for a project without code of its own: the shipped one, with a fingerprint in the place of its modules."""

import re

from deepcluster.fingerprints import CODE_FILE, is_code
from deepcluster.shipped import shipped_text

HEADER = f"""\
# Written by `deepcluster new` from the pipeline of the installed package. The code of the stages lies there too, so
# each stage depends on its digest in {CODE_FILE}, which `deepcluster plan` and `deepcluster run` keep up to date.
#
"""
_STAGE = re.compile(r"^  (\w+):$")
_PARAMS = re.compile(r"^( +)params:$")
_ENTRY = re.compile(r"^ +- (\S+?):?(?: .*)?$")


def pipeline_text() -> str:
    """The text of dvc.yaml, comments and all.

    Dependencies that are code are left out; what a stage has under `params` begins with its key of stages/code.yaml.
    """
    lines, stage = list[str](), ""
    for line in shipped_text("dvc.yaml").splitlines():
        entry = _ENTRY.match(line)
        if entry and is_code(entry[1]):
            continue
        if found := _STAGE.match(line):
            stage = found[1]
        if lines and lines[-1].strip() == "deps:" and not entry and not line.lstrip().startswith("#"):
            lines.pop()  # all of it was code
        lines.append(line)
        if found := _PARAMS.match(line):
            lines.append(f"{found[1]}  - {CODE_FILE}: [{stage}]")
    return HEADER + "\n".join(lines) + "\n"

"""Writes docs/scale-cost.md from benchmarks/prose/scale-cost.md, the cost model, the simulation and the measurement.

python -m benchmarks.scale_page            write it
python -m benchmarks.scale_page --check    exit code 1 if it is not what they say
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cost_cases, cost_measure, simulate
from benchmarks.cost_model import STAGES
from benchmarks.results import table

CHECKOUT = Path(__file__).resolve().parents[1]
PROSE, PAGE = Path(__file__).with_name("prose") / "scale-cost.md", CHECKOUT / "docs/scale-cost.md"
NOTE = "<!-- Written by `python -m benchmarks.scale_page` from benchmarks/prose/scale-cost.md: edit that instead. -->\n"
PLACEHOLDER = re.compile(r"\{\{([a-z ]+)\}\}")


def page(prose: str, record: Mapping[str, Any]) -> str:
    """The page's text; ValueError for a placeholder that nothing fills."""
    parts = _parts(record)

    def filled(match: re.Match[str]) -> str:
        if match[1] not in parts:
            raise ValueError(f"{PROSE.name}: {match[0]}: no such placeholder; expected one of {', '.join(parts)}")
        return parts[match[1]]()

    return NOTE + PLACEHOLDER.sub(filled, prose)


def _parts(record: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    return {
        "assumptions": cost_cases.assumption_table,
        "networks": _networks,
        "measured": lambda: _trimmed(cost_measure.measured_table(record)),
        "largest errors": lambda: _errors(record),
        "measured on": lambda: _hardware(record),
        "calibration": lambda: cost_measure.Size(**record["calibration"]["size"]).name,
        "rates": lambda: _rates(record),
        "predictions": lambda: _trimmed(cost_cases.predictions()),
        "changes": lambda: _trimmed(cost_cases.change_table()),
        "memory": lambda: _trimmed(cost_cases.memory_table()),
        "balance": lambda: _trimmed(simulate.balance_table()),
        "reduce": lambda: _trimmed(simulate.reduce_table()),
    }


def _networks() -> str:
    header = ("network at 224 pixels", "FLOPs an image", "weights", "D")
    rows = [
        (each.name, f"{each.forward / 1e9:.2f} GFLOP", f"{each.weights / 1e6:.1f} million", f"{each.features:,}")
        for each in cost_cases.NETWORKS
    ]
    return _trimmed(table(header, rows))


def _errors(record: Mapping[str, Any]) -> str:
    found = cost_measure.errors(record)
    return ", ".join(f"{name} {found[name]:+.0f} %" for name in (*STAGES, "epoch"))


def _hardware(record: Mapping[str, Any]) -> str:
    return f"one core of {record['hardware']['cpu']}"


def _rates(record: Mapping[str, Any]) -> str:
    names = {"forward": "forward", "training": "training", "products": "PCA", "clustering": "k-means", "axes": "axes"}
    return ", ".join(f"{label} {record['rates'][name] / 1e9:.1f} GFLOP/s" for name, label in names.items())


def _trimmed(text: str) -> str:
    """A table without the spaces that align it: some of these are wide."""
    lines = ("| " + " | ".join(cell.strip() for cell in line.strip("|").split("|")) + " |" for line in text.split("\n"))
    return "\n".join(re.sub(r"-+", "---", line) if set(line) <= set("|- ") else line for line in lines)


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_page", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(words)
    text = page(PROSE.read_text(encoding="utf-8"), cost_measure.load_record())
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        print("the page is up to date")
        return 0
    if options.check:
        print("docs/scale-cost.md: not what the model says; run `python -m benchmarks.scale_page`", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    print("written: docs/scale-cost.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The shell of a page that needs no network, and text, tables and numbers as HTML.

The page's one script may run because its hash stands in the page's policy, so nothing that a name smuggles in could.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from deepcluster.inspection.tables import Cells

LONGEST_NAME = 80
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")  # Okabe and Ito: for all kinds of sight
REST = "#8a8f96"  # what has no colour of its own


def page(title: str, body: str) -> str:
    """A whole document; `title` is plain text, `body` HTML."""
    style, script = _asset("report.css"), _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{text(title)}</title>
<style>{style}</style>
<noscript><style>.sheet[hidden] {{ display: block !important; }}</style></noscript>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def text(value: object) -> str:
    """Any value as HTML text or attribute; control characters, such as a line break in a file name, become visible."""
    return escape(printable(str(value)))


def name_text(name: str) -> str:
    """A file or class name as HTML, shortened."""
    return escape(shortened(name))


def shortened(name: str) -> str:
    """A printable name without the middle of one over 80 characters; not yet HTML."""
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[:48]}…{name[-(LONGEST_NAME - 49) :]}"


def printable(name: str) -> str:
    """Control characters, and what UTF-8 cannot hold, as backslash and digits."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def table(cells: Cells, *, first_is_ours: bool = False, label: str = "") -> str:
    """Scrolls within itself, by keyboard too, where it is wider than the page or very long."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in cells.columns)
    lines = []
    for index, row in enumerate(cells.rows):
        kind = ' class="ours"' if first_is_ours and index == 0 else ""
        first = f'<th scope="row">{text(row[0])}</th>'
        lines.append(f"<tr{kind}>{first}{''.join(f'<td>{text(value)}</td>' for value in row[1:])}</tr>")
    body = "\n".join(lines)
    region = f' role="region" aria-label="{text(label)}"' if label else ""
    return (
        f'<div class="wide tall" tabindex="0"{region}><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def section(identity: str, heading: str, *parts: str) -> str:
    """A section that the page's contents can lead to; empty parts are left out."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{identity}">\n<h2>{heading}</h2>\n{body}\n</section>'


def data_block(identity: str, content: Any) -> str:
    """JSON for the script; "<" is escaped, so no name can end the block."""
    dumped = json.dumps(content, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return f'<script type="application/json" id="{identity}">{dumped}</script>'


def data_uri(image: bytes) -> str:
    """A WebP image as an address that needs no network."""
    return f"data:image/webp;base64,{base64.b64encode(image).decode('ascii')}"


def encodable(content: str) -> str:
    """Text that UTF-8 can hold, without the zero byte that HTML cannot."""
    return content.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def counted(number: int, thing: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def chosen(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of the numbers, evenly spaced, with the first and the last."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(place * (len(numbers) - 1) / (most - 1))] for place in range(most)]


def _asset(name: str) -> str:
    return (files("deepcluster.inspection") / name).read_text(encoding="utf-8")

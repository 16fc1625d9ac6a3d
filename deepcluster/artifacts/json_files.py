"""Small results as JSON with a digest of themselves, so that a digit that turned into another one is found."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcluster.artifacts.provenance import damaged, digest_of, missing, plain, reading
from deepcluster.artifacts.publish import write_text


def write_json(target: Path, content: Mapping[str, Any]) -> None:
    """Publish `content` as JSON, with the key `digest` at its end."""
    found: dict[str, Any] = plain(dict(content))
    write_text(target, json.dumps(found | {"digest": digest_of(found)}, indent=2) + "\n")


def read_json(path: Path, *, made_by: str) -> dict[str, Any]:
    """What `write_json` wrote, without the digest; ArtifactError if it is missing, damaged, or has none."""
    text = read_result(path, made_by=made_by)
    with reading(path):
        content: dict[str, Any] = dict(json.loads(text))
    digest = content.pop("digest", None)
    if digest is None:
        raise damaged(path, "no digest: altered, or written by an earlier version")
    if digest != digest_of(content):
        raise damaged(path, "altered")
    return content


def read_result(path: Path, *, made_by: str, sha256: str | None = None) -> str:
    """The text of a file; ArtifactError if it is missing, no text, or has another sha256 than this."""
    if not path.exists():
        raise missing(path, made_by)
    with reading(path):
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise damaged(path, "checksum differs")
        return content.decode()


def text_sha256(text: str) -> str:
    """sha256 (hex) of the file that `write_text` makes of it."""
    return hashlib.sha256(text.encode()).hexdigest()

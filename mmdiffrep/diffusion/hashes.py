"""SHA-256 of weight files, computed once: what is known of a large file is kept as long as the file is not touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmdiffrep.utils.files import write

LARGE = 2**26  # bytes; smaller files are read each time
SETTLED = 2.0  # seconds: a file that was changed just now could change again without a sign of it


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read now."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """SHA-256 of a file's content; of a large one that was read before and not touched since (size, times, inode), as it was found then.

    What was found is kept in ``$XDG_CACHE_HOME/mmdiffrep/hashes`` (``~/.cache``). The hub's cache names its large files by their SHA-256.
    """
    place = path.resolve()
    if place.parent.name == 'blobs' and re.fullmatch('[0-9a-f]{64}', place.name):
        return place.name
    about = place.stat()
    if about.st_size < LARGE:
        return file_sha256(place)
    state = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino, about.st_dev]
    note = _folder() / f'{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.json'
    kept = _read(note)
    if kept.get('path') == str(place) and kept.get('state') == state and re.fullmatch('[0-9a-f]{64}', str(kept.get('sha256'))):
        return kept['sha256']
    found = file_sha256(place)
    if time.time() - max(about.st_mtime, about.st_ctime) > SETTLED:
        with contextlib.suppress(OSError):  # a home that cannot be written
            write(note, json.dumps(dict(path=str(place), state=state, sha256=found)))
    return found


def known_hashes(files: Sequence[Path]) -> list[str]:
    """:func:`known_sha256` of each, on as many cores as there are files."""
    with ThreadPoolExecutor(max(1, min(len(files), os.cpu_count() or 1))) as pool:
        return list(pool.map(known_sha256, files))


def _folder() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmdiffrep' / 'hashes'


def _read(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""Reading members of folders and zip files alike, in any worker process."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any


class Archives:
    """Members of folders and zip files. Zip files are opened once a process: a forked worker shares an open file's position."""

    def __init__(self) -> None:
        self._zips: dict[tuple[int, str], zipfile.ZipFile] = {}

    def read(self, source: str | os.PathLike[str], member: str) -> bytes:
        """The member's content; empty where a zip file cannot give it (damaged, encrypted)."""
        if Path(source).is_dir():
            return (Path(source) / member).read_bytes()
        key = (os.getpid(), str(source))
        if key not in self._zips:
            self._zips[key] = zipfile.ZipFile(source)
        try:
            return self._zips[key].read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):
            return b''

    def __getstate__(self) -> dict[str, Any]:
        return dict(_zips={})

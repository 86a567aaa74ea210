"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write(file: Path, content: str | bytes) -> None:
    """The file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f'.{file.name}.{os.getpid()}.tmp')
    if isinstance(content, str):
        content = content.encode()
    temporary.write_bytes(content)
    temporary.replace(file)

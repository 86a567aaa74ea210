"""SaveClipHook: writes a pre-trained CLIP as a folder in open_clip's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiffrep.engine.saving import DTYPES, SaveHook
from mmdiffrep.registry import HOOKS


@HOOKS.register_module()
class SaveClipHook(SaveHook):
    """Writes ``open_clip_config.json``, ``open_clip_model.safetensors``, the tokenizer's files and ``<name>.json`` (the architecture alone).
    ``mmdiffrep.openvocab.load_clip(folder)`` and open_clip's own ``create_model_and_transforms('local-dir:FOLDER')`` load it.

    Args:
        name: the architecture's name for ``open_clip.add_model_config``.
        interval, out_dir, dtype, description: see :class:`SaveHook`.
    """

    library, tags = 'open_clip', ('clip', 'zero-shot-image-classification')

    def __init__(
        self, interval: int = -1, out_dir: str = 'open_clip', name: str = 'clip', dtype: str = 'fp32', description: str = ''
    ) -> None:
        super().__init__(interval, out_dir, dtype, description)
        if name != Path(name).name or not name or name == 'open_clip_config':
            raise ValueError(
                f"name={name!r} does not fit; allowed: a file's name without folders, e.g. 'toy-clip'"
            )
        self.name = name

    def write(self, model: Any, folder: Path) -> None:
        model.save_open_clip(folder, self.name, DTYPES[self.dtype])

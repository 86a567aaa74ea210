"""SaveDiffusersHook: writes a pre-trained network as a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmdiffrep.engine.saving import DTYPES, SaveHook
from mmdiffrep.registry import HOOKS


@HOOKS.register_module()
class SaveDiffusersHook(SaveHook):
    """Writes ``unet/`` or ``transformer/``, ``scheduler/``, ``vae/`` and ``text_encoder/`` where the network works with them, and
    ``model_index.json`` where a diffusers pipeline draws from it. ``DiffusionBackbone`` takes the folder as its denoiser's ``pretrained``.

    The model must have ``save_diffusers(folder, dtype)`` and ``card()``. Arguments: :class:`SaveHook`.
    """

    library, tags = 'diffusers', ('image-generation',)

    def __init__(self, interval: int = -1, out_dir: str = 'diffusers', dtype: str = 'fp32', description: str = '') -> None:
        super().__init__(interval, out_dir, dtype, description)

    def write(self, model: Any, folder: Path) -> None:
        model.save_diffusers(folder, DTYPES[self.dtype])

"""CachedBackbone: a frozen backbone looks at each image once; later epochs, runs and evaluations read what it saw."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmdiffrep.diffusion.feature_store import FeatureStore, content_key
from mmdiffrep.registry import MODELS

from ..kept_features import backbone_mark, check_frozen
from .building import build_adapter

GIB = 2**30


@MODELS.register_module()
class CachedBackbone(BaseModule):
    """Around a frozen backbone: the same maps, rounded to ``dtype``, and each image's computed once.

    An image is known by its content as the backbone gets it. So an image that is cropped at random is another one each time, and nothing
    is gained; a mirrored one is a second image. Maps come in channels-last memory format, and are computed in the backbone's own precision (its
    ``dtype``) also where training runs under autocast.

    Args:
        backbone: config of the backbone; nothing of it may be trained, nor drawn afresh.
        folder: where maps are kept in checked files, found again by later runs with the same backbone; None: in memory.
        dtype: ``'fp16'`` or ``'fp32'``.
        adapter: config of a trained adapter behind the kept maps, which :class:`DiffusionBackbone` would have as its own.
        memory: GiB of maps that are kept in memory at most; beyond it images are computed each time. Not of ``folder``.
        limit: GiB that ``folder`` may take; features of other backbones that were used least recently go first.

    Raises:
        ValueError: at the first look: a backbone that is trained or draws fresh noise.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        folder: str | os.PathLike[str] | None = None,
        dtype: str = 'fp16',
        memory: float = 4.0,
        adapter: Mapping[str, Any] | None = None,
        limit: float | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        FeatureStore('', None, dtype, limit=limit)  # what does not fit is reported when the config is read
        self.backbone = MODELS.build(backbone)
        self.adapter = None
        if adapter is not None:
            self.adapter = build_adapter(adapter, self.backbone.tap_infos)
            self.out_channels, self.out_strides = list(self.adapter.out_channels), list(self.adapter.out_strides)
        self.folder, self.dtype, self.memory, self.limit = folder, dtype, memory, limit
        self._register_state_dict_hook(_as_uncached)
        self._register_load_state_dict_pre_hook(self._from_uncached)
        self.store: FeatureStore | None = None
        self._numbers: dict[str, int] = {}
        self._full = False

    def train(self, mode: bool = True) -> CachedBackbone:
        """The backbone stays in eval mode: its maps are kept."""
        self.training = mode
        if self.adapter is not None:
            self.adapter.train(mode)
        self.backbone.eval()
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ('out_channels', 'out_strides', 'timesteps', 'tap_infos', 'taps', 'noise', 'denoiser'):
                return getattr(self.backbone, name)
            raise

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> the backbone's maps (B, C_k, h_k, w_k), in the images' dtype; or the adapter's of them."""
        maps = self.kept(image)
        if self.adapter is None:
            return maps
        return tuple(self.adapter(maps, (image.shape[-2], image.shape[-1])))

    @torch.no_grad()
    def kept(self, image: Tensor) -> tuple[Tensor, ...]:
        """The backbone's maps, before the adapter."""
        store = self._opened()
        size = (image.shape[-2], image.shape[-1])
        keys = [content_key(x) for x in image]
        rows: dict[str, list[Tensor]] = {}
        missing = {}
        for i, key in enumerate(keys):
            if key not in self._numbers and (number := store.find(key, size)) is not None:
                self._numbers[key] = number
            if key in self._numbers:
                rows[key] = self._read(store, key)
            if not rows.get(key):
                missing[key] = i
        if missing:
            with torch.autocast(image.device.type, enabled=False):  # in the backbone's own precision, whoever asks first
                batch = self.backbone(image[list(missing.values())])
            for k, key in enumerate(missing):
                rows[key] = store.laid_out([m[k] for m in batch])
                number = store.put(key, size, rows[key])
                if self._room(store):
                    self._numbers[key] = number
                else:
                    store.drop_last()
        with torch.autocast('cpu', enabled=False):  # it stacks no fp16 where it computes in bf16
            return tuple(
                torch.stack(list(maps)).to(image.device, image.dtype).permute(0, 3, 1, 2) for maps in zip(*(rows[key] for key in keys))
            )

    def _from_uncached(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        """Checkpoints are those of the backbone alone, so that they fit with and without a cache."""
        for name in list(self.backbone.state_dict()):
            if prefix + name in state_dict:
                state_dict[f'{prefix}backbone.{name}'] = state_dict.pop(prefix + name)

    def _read(self, store: FeatureStore, key: str) -> list[Tensor]:
        try:
            return store.images[self._numbers[key]].maps
        except OSError:  # another process has made room: look again
            del self._numbers[key]
            return []

    def _room(self, store: FeatureStore) -> bool:
        """Whether the image that was just added may stay."""
        if self.folder is not None:
            return store.images[-1].record is not None
        if self._full or store.bytes > self.memory * GIB:
            if not self._full:
                self._full = True
                warnings.warn(
                    f'CachedBackbone keeps {len(store) - 1} images in memory={self.memory} GiB, and no more: others are computed each '
                    'time. Give more memory, or a folder',
                    stacklevel=2,
                )
            return False
        return True

    def _opened(self) -> FeatureStore:
        if self.store is None:
            model = SimpleNamespace(backbone=self.backbone)
            check_frozen(model, 'a CachedBackbone')
            self.store = FeatureStore(backbone_mark(model), self.folder, self.dtype, limit=self.limit)
        return self.store

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'store': None, '_numbers': {}}  # copies (EMA) do not carry the maps

    def extra_repr(self) -> str:
        return f'folder={self.folder}, dtype={self.dtype}'


def _as_uncached(module: CachedBackbone, state_dict: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    inner = f'{prefix}backbone.'
    for name in [name for name in state_dict if name.startswith(inner)]:
        state_dict[prefix + name[len(inner) :]] = state_dict.pop(name)

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
    is gained; a mirrored one is a second image. Maps come in channels-last memory format.

    Args:
        backbone: config of the backbone; nothing of it may be trained, nor drawn afresh.
        folder: where maps are kept in checked files, found again by later runs with the same backbone; None: in memory.
        dtype: ``'fp16'`` or ``'fp32'``.
        adapter: config of a trained adapter behind the kept maps, which :class:`DiffusionBackbone` would have as its own.
        memory: GiB of maps that are kept in memory at most; beyond it images are computed each time. Not of ``folder``.

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
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        FeatureStore('', None, dtype)  # what does not fit is reported when the config is read
        self.backbone = MODELS.build(backbone)
        self.adapter = None
        if adapter is not None:
            self.adapter = build_adapter(adapter, self.backbone.tap_infos)
            self.out_channels, self.out_strides = list(self.adapter.out_channels), list(self.adapter.out_strides)
        self.folder, self.dtype, self.memory = folder, dtype, memory
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
        keys = [content_key(x) for x in image]
        missing = {key: i for i, key in enumerate(keys) if key not in self._numbers}
        fresh: dict[str, list[Tensor]] = {}
        if missing:
            fresh = self._looked(store, image, missing)
        rows = [fresh[key] if key in fresh else store.images[self._numbers[key]].maps for key in keys]
        return tuple(
            torch.stack(list(maps)).to(image.device, image.dtype).permute(0, 3, 1, 2) for maps in zip(*rows)
        )

    def _looked(self, store: FeatureStore, image: Tensor, missing: dict[str, int]) -> dict[str, list[Tensor]]:
        """Maps of the images that are not kept: from their files, or computed in one batch."""
        size = (image.shape[-2], image.shape[-1])
        needed = [key for key in missing if self.folder is None or not store.path(key).exists()]
        computed: dict[str, list[Tensor]] = {}
        if needed:
            batch = self.backbone(image[[missing[key] for key in needed]])
            computed = {key: [m[i] for m in batch] for i, key in enumerate(needed)}
        fresh = {}
        for key, i in missing.items():

            def maps(key: str = key, i: int = i) -> list[Tensor]:
                # a damaged file is computed anew
                return computed.get(key) or [m[0] for m in self.backbone(image[i : i + 1])]

            number = store.add(key, size, maps)
            if self.folder is None and not self._room(store):
                fresh[key] = store.images.pop().maps
            else:
                self._numbers[key] = number
        return fresh

    def _room(self, store: FeatureStore) -> bool:
        if self._full or store.bytes > self.memory * GIB:  # of the image that was just added, too
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
            self.store = FeatureStore(backbone_mark(model), self.folder, self.dtype)
        return self.store

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'store': None, '_numbers': {}}  # copies (EMA) do not carry the maps

    def extra_repr(self) -> str:
        return f'folder={self.folder}, dtype={self.dtype}'

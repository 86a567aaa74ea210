"""ClipBackbone: a frozen convolutional CLIP as an ordinary OpenMMLab backbone.

Yu et al., Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional CLIP (FC-CLIP), NeurIPS 2023, section 3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmdiffrep.diffusion.taps import TapInfo
from mmdiffrep.openvocab.conv_tower import ConvTower, load_conv_tower
from mmdiffrep.registry import MODELS

from ..frozen import FrozenHolder
from .building import DTYPES, build_adapter
from .checks import check_image, watch_learning_rate
from .diffusion_backbone import IMAGENET_MEAN, IMAGENET_STD
from .geometry import cover
from .rgb import RgbInput

WEIGHTS = 'laion2b_s29b_b131k_ft_soup'  # of FC-CLIP's ConvNeXt-L


@MODELS.register_module()
class ClipBackbone(RgbInput, BaseModule):
    """The four stages of a convolutional CLIP's image tower (ConvNeXt, ResNet) are the feature maps. Nothing of it is trained.

    Its weights are in no checkpoint; a checkpoint says which they were, and is refused with others.

    Args:
        name: architecture that open_clip knows, a folder with ``open_clip_config.json``, ``'hf-hub:org/name'``, or a short name.
        pretrained: open_clip's tag, or a weight file; not used where ``name`` has weights of its own.
        random_seed: draw new weights from this seed for the architecture of ``name``: the untrained baseline. Nothing is fetched.
        config: open_clip's model config of an architecture to draw weights for, in the place of ``name``; the seed is 0 by default.
        out_indices: which of the four stages, at strides 4, 8, 16 and 32, are given.
        image_mean, image_std: what the data preprocessor subtracted and divided by, in its channel order. The backbone undoes
            it and normalises as this CLIP was trained. Defaults: ImageNet's, as in stock configs.
        bgr: whether images come as BGR (``bgr_to_rgb=False`` in the data preprocessor).
        dtype: ``'fp32'``, ``'fp16'``, ``'bf16'``: how the weights are stored and used; None: as the runner runs (its AMP included).
        adapter: config of an adapter (``StridePyramid``, ``StrideConcat``, ``ConcatUpsample``), the trained part; None gives the raw
            maps. Its ``in_channels`` and ``in_strides`` are filled in.

    Attributes:
        out_channels, out_strides: of the returned maps, known before any forward.
        tap_infos: the same of the raw maps, before the adapter.

    Raises:
        FileNotFoundError: the weights are not there, or cannot be fetched.
        ValueError: an image tower without such stages (a ViT), or an argument that does not fit.
    """

    def __init__(
        self,
        name: str | Path = 'convnext_large_d_320',
        pretrained: str | None = WEIGHTS,
        random_seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        bgr: bool = False,
        dtype: str | None = None,
        adapter: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if dtype not in (None, *DTYPES):
            raise ValueError(f'dtype={dtype!r} is unknown; allowed: {list(DTYPES)} or None')
        if not len(image_mean) == len(image_std) == 3:
            raise ValueError(
                f'image_mean={list(image_mean)} and image_std={list(image_std)} were given; CLIP takes images of 3 channels: give one '
                'number for each'
            )
        tower = _load(str(name), pretrained, random_seed, config, out_indices)
        self.amp_dtype = DTYPES[dtype] if dtype else None
        self.holder = FrozenHolder(tower.to(self.amp_dtype), tower.fingerprint, 'CLIP')
        self.set_normalisation(image_mean, image_std, bgr)
        maps = zip(tower.stages, tower.channels, tower.strides)
        self.tap_infos = [TapInfo(f'stages.{k}', c, stride, k) for k, c, stride in maps]
        self.adapter = build_adapter(adapter, self.tap_infos)
        source: Any = self.adapter
        self.out_channels = list(tower.channels if source is None else source.out_channels)
        self.out_strides = list(tower.strides if source is None else source.out_strides)
        self._lr_watched = False

    @property
    def tower(self) -> ConvTower:
        return self.holder.frozen

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) as the data preprocessor left them -> maps (B, C_k, ceil(H/s_k), ceil(W/s_k)).

        Each map covers exactly the image that was given.
        """
        check_image(image, 3)
        if self.training and self.adapter is not None and not self._lr_watched:
            self._lr_watched = True
            watch_learning_rate(list(self.adapter.parameters()), 'ClipBackbone')
        maps = self.features(image)
        return maps if self.adapter is None else self.adapter(maps, tuple(image.shape[-2:]))

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The raw maps, before the adapter, without gradient."""
        rgb = self.to_rgb(image)
        with self._precision(rgb.device.type):
            found = self.tower(rgb)
        size = (image.shape[-2], image.shape[-1])
        return tuple(
            cover(x.to(image.dtype), stride, size) for x, stride in zip(found, self.tower.strides)
        )

    @contextlib.contextmanager
    def _precision(self, device: str) -> Iterator[None]:
        """None: as the surroundings are. Weights stored in a type of their own need no autocast."""
        if self.amp_dtype is None:
            yield
            return
        with torch.autocast(device, enabled=False):
            yield

    def extra_repr(self) -> str:
        return f'weights={self.holder.fingerprint}, out_channels={self.out_channels}, out_strides={self.out_strides}'


def _load(
    name: str,
    pretrained: str | None,
    random_seed: int | None,
    config: Mapping[str, Any] | None,
    stages: Sequence[int],
) -> ConvTower:
    default = pretrained == WEIGHTS
    if config is not None and pretrained is not None and not default:
        raise ValueError(
            f"config has no trained weights: leave pretrained={pretrained!r} out, or save the model in open_clip's format "
            '(mmdiffrep.openvocab.save_clip) and give its folder as name'
        )
    own = name.startswith(('mmdiffrep/', 'hf-hub:')) or Path(name).expanduser().is_dir()
    if default and own:
        pretrained = None  # what was meant for the default name
    return load_conv_tower(name, pretrained, random_seed, config, stages)

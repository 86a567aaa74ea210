"""TimmBackbone: a stock network of timm as a backbone, to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.registry import MODELS


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Maps of a network of timm (https://huggingface.co/docs/timm), ResNets and ViTs alike.

    Args:
        model: timm's name, e.g. ``'resnet18'``, ``'vit_base_patch16_224'``.
        out_indices: which of its stages or blocks; None: the last.
        pretrained: timm's own weights (fetched from the hub).
        checkpoint: a file of weights instead (``.safetensors`` or ``.pth``).
        small_images: a ResNet's stem for images of 32 … 64 pixels: 3×3 convolution of stride 1 and no pooling.
        channels_last: memory format of the network; faster for convolutions (1.7 times in training a ResNet-20 on a CPU).
        frozen: nothing is trained; statistics and dropout stay as they are.
        model_args: more arguments of ``timm.create_model``, e.g. ``dict(img_size=64, patch_size=8)``.

    Attributes:
        out_channels, out_strides: of the maps.

    Raises:
        ValueError: an unknown model, or one without a stem that can be exchanged.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int] | None = None,
        pretrained: bool = False,
        checkpoint: str | None = None,
        small_images: bool = False,
        channels_last: bool = False,
        frozen: bool = False,
        model_args: dict[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        import timm

        if model.split('.')[0] not in timm.list_models():  # behind the dot: which weights
            close = timm.list_models(f'*{model[:6]}*')[:5]
            raise ValueError(f'model={model!r} is no model of timm {timm.__version__}; similar names: {close}')
        chosen = (-1,) if out_indices is None else tuple(out_indices)
        settings = dict(model_args or {})
        if checkpoint is not None:
            settings['pretrained_cfg_overlay'] = dict(file=checkpoint)
        self.net = timm.create_model(
            model, features_only=True, out_indices=chosen, pretrained=pretrained or checkpoint is not None, **settings
        )
        self.out_channels = list(self.net.feature_info.channels())
        self.out_strides = list(self.net.feature_info.reduction())
        if small_images:
            self._small_stem(model)
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.net.to(memory_format=self.memory_format)
        self.channels_behind = getattr(self.net, 'output_fmt', None) == 'NHWC'  # Swin's
        self.frozen = frozen
        if frozen:
            self.net.requires_grad_(False)

    def _small_stem(self, model: str) -> None:
        conv = getattr(self.net, 'conv1', None)
        if not isinstance(conv, nn.Conv2d) or not hasattr(self.net, 'maxpool'):
            raise ValueError(f'small_images=True is for ResNets with one convolution as their stem, not for {model!r}: leave it out')
        self.net.conv1 = nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(self.net.conv1.weight, mode='fan_out', nonlinearity='relu')
        self.net.maxpool = nn.Identity()
        self.out_strides = [max(1, stride // 4) for stride in self.out_strides]

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) as the data preprocessor left them -> maps (B, C_k, h_k, w_k)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.net(image.to(memory_format=self.memory_format))
            return tuple(m.permute(0, 3, 1, 2) if self.channels_behind else m for m in maps)

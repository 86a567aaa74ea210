"""DiffusionBackbone: any diffusion network as an ordinary OpenMMLab backbone."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmdiffrep.diffusion.denoiser import Condition, Denoiser
from mmdiffrep.diffusion.extraction import LOOKS, FeatureExtractor, listed
from mmdiffrep.diffusion.noise import NoisePolicy, image_key
from mmdiffrep.registry import MODELS

from .building import (
    DTYPES,
    build_adapter,
    build_conditioner,
    build_denoiser,
    build_windows,
    compile_looks,
    set_up,
)
from .checks import check_image, watch_learning_rate
from .geometry import cover
from .holder import DenoiserHolder
from .rgb import RgbInput

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@MODELS.register_module()
class DiffusionBackbone(RgbInput, BaseModule):
    """A noised copy of the image is looked at once; the tapped activations are the feature maps.

    Args:
        denoiser: config of a denoiser, e.g. ``dict(type='mmdiffrep.PixelUNet', pretrained='mmdiffrep/toy-unet')``.
        taps: where activations are read (see ``tools/list_taps.py``); paper aliases are allowed.
        timesteps: one or several, in the schedule's units. Several give the taps' maps for each, t-major; an autoencoder's taps
            come once.
        noise: a :class:`NoisePolicy`'s arguments; default: one shared draw, seed 0.
        adapter: config of an adapter (``StridePyramid``, ``StrideConcat``, ``ConcatUpsample``); None gives the raw maps. Its
            ``in_channels`` and ``in_strides`` are filled in.
        trainable: False (frozen), True (all of the network), or module paths of the parts to train.
        grad_through: let gradients pass through the frozen network to what comes before it.
        with_cp: activation checkpointing in the network.
        dtype: ``'fp32'``, ``'fp16'``, ``'bf16'``, or None: as the runner runs (its AMP included). A frozen network's weights
            are stored in it; a trained one keeps fp32 weights and runs under autocast.
        channels_last: memory format of the network.
        compile: compile looks with torch.compile, in one graph: True, a mode (``'reduce-overhead'`` records CUDA graphs), or dict(mode=…,
            dynamic=…, backend=…). For U-Nets.
        fuse_qkv: one product for queries, keys and values of each self-attention of a frozen network.
        quantise: ``'int8'`` or ``'fp8'`` weights of a frozen network's linear layers, by torchao.
        image_mean, image_std: what the data preprocessor subtracted and divided by, in its channel order. The backbone undoes
            it and maps to [-1, 1]. Defaults: ImageNet's, as in stock configs.
        bgr: whether images come as BGR (``bgr_to_rgb=False`` in the data preprocessor).
        class_id: class told to a class-conditional network.
        conditioner: config of a module that tells the network more, for example ``dict(type='mmdiffrep.TextAdapter')``. Its
            ``token_channels``, ``time_channels`` and ``token_count`` are filled in; where it is trained, gradients pass through the
            network.
        windows: ``dict(size=512, batch=8)``: look at square windows of min(size, short side), each resized to ``size``, ``batch`` at
            once; the adapter's maps (the raw ones without an adapter) are stitched, see :class:`Windows`. Noise, conditioner and
            adapter get each window alone; a window's ``per_image`` noise is seeded by its own pixels. None: the whole image.
        looks: with several timesteps or draws of noise: so many noised images go through the network at once. Less memory, the same
            maps: 1. Where memory runs out, looks without gradients are split, with a warning.
        memory: GiB that a frozen network's activations may take, beside the weights: so many images, windows, timesteps and draws go at once as
            fit, found from shapes once for each size; ``looks`` is then not used. None: all of a batch, split where memory runs out.
        keep_taps: further taps behind which the network is not cut, for whoever reads them.
        pretrained: not used, with a warning: what mmseg hands down from a stock config's ``model.pretrained``.

    Attributes:
        out_channels, out_strides: of the returned maps, known before any forward. Channels are -1 where they depend on the
            image's size: a self-attention's probabilities.
    """

    def __init__(
        self,
        denoiser: Mapping[str, Any] | Denoiser,
        taps: Sequence[str],
        timesteps: float | Sequence[float] = 50,
        noise: Mapping[str, Any] | None = None,
        adapter: Mapping[str, Any] | None = None,
        trainable: bool | Sequence[str] = False,
        grad_through: bool = False,
        with_cp: bool = False,
        dtype: str | None = None,
        channels_last: bool = False,
        compile: bool | str | Mapping[str, Any] = False,
        fuse_qkv: bool = False,
        quantise: str | None = None,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        bgr: bool = False,
        class_id: int | None = None,
        conditioner: Mapping[str, Any] | None = None,
        windows: Mapping[str, Any] | None = None,
        looks: int = LOOKS,
        memory: float | None = None,
        keep_taps: Sequence[str] = (),
        pretrained: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if pretrained is not None:
            warnings.warn(
                f'DiffusionBackbone: pretrained={pretrained!r} is not used (mmseg hands down what a stock config says in '
                'model.pretrained, which was for the backbone it had). The diffusion weights are named in denoiser.pretrained; '
                'set model.pretrained=None to silence this',
                stacklevel=2,
            )
        if dtype not in (None, *DTYPES):
            raise ValueError(f'dtype={dtype!r} is unknown; allowed: {list(DTYPES)} or None')
        if isinstance(trainable, str):
            trainable = [trainable]
        self.class_id = class_id
        taps = listed(taps)
        network = build_denoiser(denoiser, [*taps, *keep_taps])
        if not len(image_mean) == len(image_std) == network.image_channels:
            raise ValueError(
                f'image_mean={list(image_mean)} and image_std={list(image_std)} were given; the network takes images of '
                f'{network.image_channels} channels: give one number for each'
            )
        # no module, so that the frozen network stays outside the module tree
        self.extractor = FeatureExtractor(
            network, taps, timesteps, NoisePolicy(**(noise or {})), looks, memory
        )
        self.amp_dtype = set_up(network, taps, trainable, with_cp, dtype, channels_last, fuse_qkv, quantise)
        self.switches = dict(channels_last=channels_last, fuse_qkv=fuse_qkv, quantise=quantise, compile=bool(compile))
        trained = [''] if trainable is True else list(trainable or [])
        self.holder = DenoiserHolder(network, trained)
        self.trains_network = bool(trained)
        self.set_normalisation(image_mean, image_std, bgr)

        self.conditioner = build_conditioner(conditioner, network)
        self.grad_through = grad_through or any(
            p.requires_grad for p in (self.conditioner.parameters() if self.conditioner else ())
        )
        self.tap_infos = self.extractor.infos()
        self.adapter = build_adapter(adapter, self.tap_infos)
        self.windows = build_windows(windows)
        if compile and self.extractor.moving:
            compile_looks(network, self.extractor.moving, compile, with_cp)
        source = self.adapter if self.adapter is not None else None
        self.out_channels = list(
            source.out_channels if source is not None else [tap.channels for tap in self.tap_infos]
        )
        self.out_strides = list(
            source.out_strides if source is not None else [tap.stride for tap in self.tap_infos]
        )
        self._lr_watched = False
        self._prompts: list[str] | None = None

    @property
    def denoiser(self) -> Denoiser:
        return self.holder.denoiser

    @property
    def taps(self) -> list[str]:
        return self.extractor.taps

    @property
    def timesteps(self) -> list[float]:
        return self.extractor.timesteps

    @property
    def noise(self) -> NoisePolicy:
        return self.extractor.noise

    @contextlib.contextmanager
    def prompted(self, prompts: Sequence[str]) -> Iterator[None]:
        """Tell the network one prompt an image while this context is open; afterwards what was said before is back."""
        before = self._prompts
        self.set_prompts(prompts)
        try:
            yield
        finally:
            self.set_prompts(before)

    def set_prompts(self, prompts: Sequence[str] | None) -> None:
        """Tell the network one prompt an image from now on; None: the fixed prompt again.

        Raises:
            ValueError: one string for all images.
        """
        if isinstance(prompts, str):
            raise ValueError(
                f'prompts={prompts!r} is one string; give a list with one prompt for each image'
            )
        self._prompts = None if prompts is None else list(prompts)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) as the data preprocessor left them -> maps (B, C_k, ceil(H/s_k), ceil(W/s_k)).

        Each map covers exactly the image that was given.
        """
        check_image(image, self.denoiser.image_channels)
        if self.training and self.adapter is not None and not self._lr_watched:
            self._lr_watched = True
            watch_learning_rate(list(self.adapter.parameters()))
        return self._maps(image, adapted=self.adapter is not None)

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The raw maps, before the adapter: for each timestep every tap, in the order of :attr:`tap_infos`."""
        return self._maps(image, adapted=False)

    def _maps(self, image: Tensor, adapted: bool) -> tuple[Tensor, ...]:
        rgb = self.to_rgb(image)
        self._check_prompts(len(rgb))
        if self.windows is None:
            return self._look(rgb, image.dtype, adapted, self._prompts)
        by_image = self.noise.kind == 'per_image'

        def look(crops: Tensor, images: list[int]) -> tuple[Tensor, ...]:
            assert self.windows is not None
            prompts = self._prompts and [self._prompts[i] for i in images]
            # of the pixels as they are: those of a resized window depend on the device
            keys = [image_key(crop) for crop in crops] if by_image else None
            return self._look(self.windows.resize(crops), image.dtype, adapted, prompts, keys)

        strides = self.out_strides if adapted else [info.stride for info in self.tap_infos]
        return self.windows(rgb, look, strides)

    def _look(
        self,
        rgb: Tensor,
        dtype: torch.dtype,
        adapted: bool,
        prompts: list[str] | None,
        keys: list[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """Maps of images (B, 3, H, W) in [-1, 1], of a batch of windows as well, in ``dtype``."""
        with contextlib.ExitStack() as stack:
            if not (self.trains_network or self.grad_through):
                stack.enter_context(torch.no_grad())
            stack.enter_context(self._precision(rgb.device.type))
            found = self.extractor(rgb, self._condition(rgb, prompts), keys)
        size = tuple(rgb.shape[-2:])
        maps = tuple(
            cover(x.to(dtype), info.stride, size) for x, info in zip(found, self.tap_infos)
        )
        return self.adapter(maps, size) if adapted else maps  # type: ignore[misc]

    def _check_prompts(self, images: int) -> None:
        if self._prompts is not None and len(self._prompts) != images:
            raise ValueError(
                f'{len(self._prompts)} prompts were given for {images} images: give one for each'
            )

    def _condition(self, rgb: Tensor, prompts: list[str] | None) -> Condition | None:
        """What the network is told about a batch of images."""
        condition = self.denoiser.default_condition(len(rgb))
        if prompts is not None:
            condition = Condition(tokens=self.denoiser.encode_text(prompts).to(rgb.device))
        if self.class_id is not None:
            condition = condition or Condition()
            condition.class_ids = torch.full((len(rgb),), self.class_id, device=rgb.device)
        if self.conditioner is not None:
            condition = self.conditioner(rgb, condition)
        return condition

    @contextlib.contextmanager
    def _precision(self, device: str) -> Iterator[None]:
        """None: as the surroundings are. A frozen low-precision network needs no autocast; a trained one runs under it."""
        if self.amp_dtype is None:
            yield
            return
        autocast = self.trains_network and self.amp_dtype != torch.float32
        with torch.autocast(device, dtype=self.amp_dtype if autocast else None, enabled=autocast):
            yield

    def extra_repr(self) -> str:
        return (
            f'taps={self.taps}, timesteps={self.timesteps}, noise={self.noise}, '
            f'weights={self.denoiser.fingerprint}, out_channels={self.out_channels}, out_strides={self.out_strides}'
        )

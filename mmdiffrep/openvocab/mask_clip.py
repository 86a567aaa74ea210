"""Regions named by CLIP, without training: an image and masks -> a CLIP embedding a mask, by masked attention.

Xu et al., Open-Vocabulary Panoptic Segmentation with Text-to-Image Diffusion Models (ODISE), CVPR 2023, section 3.5; the attention
after Ding et al., Open-Vocabulary Universal Image Segmentation with MaskCLIP, ICML 2023. The other way, pooling a convolutional CLIP's
features, is in ``mask_pool.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip_vit import Size, VisionTransformer, find_vit
from .hashing import weights_hash

HIDDEN = float('-inf')


class MaskClassifier(ABC):
    """Embeds what masks show: ``classifier(images, masks)``, to be compared with text embeddings of the same CLIP.

    Frozen, in eval mode, fp32, without gradients. No ``nn.Module``: a model that holds one neither saves, trains nor copies it. It
    follows its images to their device.

    Attributes:
        width: of the embeddings.
        logit_scale: what cosines with text embeddings are multiplied with before a softmax.
        fingerprint: hash of the weights and of what else decides the embeddings.
    """

    width: int
    logit_scale: float
    fingerprint: str
    module: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor | Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Unit embeddings, one a mask: list of (Q_b, width), fp32, on the images' device.

        Args:
            images: (B, 3, H, W), or a list of (3, H_b, W_b): RGB in [0, 1], without padding.
            masks: list of (Q_b, h_b, w_b), probabilities in [0, 1] that cover exactly their image, at any resolution. Q_b may
                differ, and be 0.

        Raises:
            ValueError: shapes or ranges do not fit.
        """
        images = checked(images, masks)
        self.to(images[0].device)
        with torch.no_grad(), torch.autocast(images[0].device.type, enabled=False):
            return self.embed(
                [image.float() for image in images],
                [m.to(i.device, torch.float32) for i, m in zip(images, masks)],
            )

    @abstractmethod
    def embed(self, images: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """What :meth:`__call__` does, its input checked, in fp32 and on one device."""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def to(self, device: str | torch.device) -> MaskClassifier:
        if torch.device(device) != self.device:
            self.module.to(device)
        return self

    def __deepcopy__(self, memo: dict) -> MaskClassifier:
        return self  # frozen: an averaged copy of a model shares it

    def __repr__(self) -> str:
        return f'{type(self).__name__}(width={self.width}, {self.fingerprint[:20]}…)'

    def resized(self, image: Tensor, size: Size) -> Tensor:
        """Image (3, H, W) -> (3, *size), bicubic as open_clip resizes, normalised. The whole image: a crop would lose masks."""
        if image.shape[-2:] != size:
            image = F.interpolate(image[None], size, mode='bicubic', antialias=True)[0].clamp(0, 1)
        mean, std = (image.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return (image - mean) / std


class MaskAttentionClip(MaskClassifier):
    """Masked attention in CLIP's image transformer.

    A copy of the class token a mask is appended. It sees the class token and the patches that its mask covers; no token sees it, nor
    does it see itself, so that the ordinary tokens stay what they are, and the token of a full mask has CLIP's own image embedding. A
    mask that covers nothing sees the class token alone. Patches have seen the whole image in the blocks before, so that a mask's
    surroundings still have a say, as in the paper.

    A patch is covered if the mask, resized to the image's size in CLIP, reaches 0.5 anywhere in it.

    Args:
        name: as ``load_clip`` takes it; with ``library='transformers'`` a folder or hub id of a CLIP; or a model in memory (copied).
        pretrained: open_clip's tag or a weight file, see ``load_clip``.
        image_size: pixels, or (height, width), that images are resized to; multiples of the patch. None: CLIP's own square. The whole
            image is squashed into it, never cropped, and its masks with it; a rectangle near the images' aspect keeps their
            proportions. Positions are interpolated for sizes other than CLIP's own.
        masks_at_once: bounds memory: attention holds (1 + patches + masks_at_once)² numbers for an image and head.

    Raises:
        FileNotFoundError: see ``load_clip``.
        ValueError: the model has no transformer with a class token, or the size does not fit.
    """

    def __init__(
        self,
        name: str | Path | nn.Module = 'mmdiffrep/toy-clip',
        pretrained: str | None = None,
        image_size: int | Sequence[int] | None = None,
        device: str | torch.device = 'cpu',
        masks_at_once: int = 256,
        library: str = 'open_clip',
    ) -> None:
        if masks_at_once < 1:
            raise ValueError(f'masks_at_once={masks_at_once} does not fit; allowed: at least 1')
        self.tower: VisionTransformer = find_vit(name, pretrained, library)
        self.module, self.width = self.tower.module, self.tower.width
        self.logit_scale = self.tower.logit_scale
        self.mean, self.std = self.tower.mean, self.tower.std
        self.size = self.tower.size if image_size is None else pair(image_size, self.tower.patch)
        self.masks_at_once = masks_at_once
        self.fingerprint = content_hash(self, self.size)
        self.to(device)

    def embed(self, images: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        tokens = self.tower.tokens(torch.stack([self.resized(i, self.size) for i in images]))
        rows: list[list[Tensor]] = [[tokens.new_empty(0, self.width)] for _ in images]
        for start in range(0, max(map(len, masks)), self.masks_at_once):
            left = [b for b, m in enumerate(masks) if len(m) > start]
            seen = [self.covered(masks[b][start : start + self.masks_at_once]) for b in left]
            found = self._mask_tokens(tokens[left], nn.utils.rnn.pad_sequence(seen, True, False))
            for b, visible, row in zip(left, seen, found):
                rows[b].append(row[: len(visible)])
        return [F.normalize(torch.cat(row), dim=-1) for row in rows]

    def covered(self, masks: Tensor) -> Tensor:
        """Probabilities (Q, h, w) -> which patches they cover (Q, patches), bool."""
        masks = F.interpolate(masks[:, None], self.size, mode='bilinear', align_corners=False)
        return F.max_pool2d(masks, self.tower.patch).flatten(1) >= 0.5

    def _mask_tokens(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Tokens (B, 1 + P, C), visible patches (B, Q, P) -> projected mask tokens (B, Q, width)."""
        count = visible.shape[1]
        x = torch.cat([tokens, tokens[:, :1].expand(-1, count, -1)], 1)
        return self.tower.project(
            self.tower.blocks(x, attention_mask(visible))[:, tokens.shape[1] :]
        )


def attention_mask(visible: Tensor) -> Tensor:
    """What masked attention adds to its logits, from visible patches (B, Q, P): (B, L, L), L = 1 + P + Q, rows see columns.

    Order: the class token, patches, mask tokens. 0 where a token is seen, minus infinity where not.
    """
    images, count, patches = visible.shape
    ordinary = 1 + patches
    mask = visible.new_zeros((images, ordinary + count, ordinary + count), dtype=torch.float32)
    mask[:, :, ordinary:] = HIDDEN
    mask[:, ordinary:, 1:ordinary].masked_fill_(~visible, HIDDEN)
    return mask


def checked(images: Tensor | Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Images as a list of (3, H, W). ValueError unless every mask fits its image."""
    if isinstance(images, Tensor) and images.dim() != 4:
        raise ValueError(
            f'images have shape {tuple(images.shape)}; allowed: (B, 3, H, W), or a list of (3, H, W)'
        )
    images = [*images]
    if isinstance(masks, Tensor) or len(masks) != len(images) or not images:
        given = f'a tensor {tuple(masks.shape)}' if isinstance(masks, Tensor) else len(masks)
        raise ValueError(
            f'{len(images)} images with {given} for masks; needed: a list with one (Q, h, w) an image'
        )
    for number, (image, mask) in enumerate(zip(images, masks)):
        if image.dim() != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(
                f'image {number} is {image.dtype} {tuple(image.shape)}; allowed: float (3, H, W), RGB in [0, 1]'
            )
        _check_range(image, f'image {number}', 'divide pixels by 255, and do not normalise them')
        if mask.dim() != 3:
            raise ValueError(
                f'the masks of image {number} have shape {tuple(mask.shape)}; needed: (Q, h, w). For one mask give mask[None]'
            )
        _check_range(mask, f'masks of image {number}', 'give probabilities, the sigmoid of logits')
        check_aspect(mask.shape[-2:], image.shape[-2:], f'image {number}')
    return images


def check_aspect(mask: Sequence[int], image: Sequence[int], name: str) -> None:
    """ValueError unless a mask is its image at another scale, to a pixel's rounding."""
    (h, w), (height, width) = mask, image
    if min(h, w) < 1 or abs(h * width - w * height) >= max(height, width):
        raise ValueError(
            f'masks of {h} x {w} do not cover {name}, which has {height} x {width} pixels: the aspects differ. Crop both to what the image '
            'shows without padding (img_shape) first'
        )


def _check_range(values: Tensor, name: str, cure: str) -> None:
    if values.numel():
        low, high = (float(value) for value in values.detach().aminmax())
        if not (low >= -1e-3 and high <= 1.001):
            raise ValueError(
                f'{name}: values in [{low:.3g}, {high:.3g}]; allowed: [0, 1]. Cure: {cure}'
            )


def pair(size: int | Sequence[int], multiple: Size) -> Size:
    """A size as (height, width). ValueError unless both are multiples."""
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2 or min(both) < 1 or any(s % m for s, m in zip(both, multiple)):
        raise ValueError(
            f'image_size={size} does not fit; allowed: an integer or (height, width), multiples of {multiple[0]} x {multiple[1]}'
        )
    return both[0], both[1]


def content_hash(classifier: MaskClassifier, *more: Any) -> str:
    """What decides a classifier's embeddings: its kind, weights and normalisation, and what else is given."""
    kind = type(classifier).__name__
    return weights_hash(classifier.module, kind, classifier.mean, classifier.std, *more)

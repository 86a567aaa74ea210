"""A frozen CLIP image tower that prepares its images itself: RGB in [-1, 1] -> image embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiffrep.diffusion.model_files import random_fingerprint
from mmdiffrep.diffusion.seeding import seeded

from .clip import build_clip, clip_architecture, load_clip
from .hashing import weights_hash

KINDS = ('open_clip', 'transformers')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
# of CLIP's own preprocessing, RGB in [0, 1] (Radford et al., ICML 2021)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageTower(nn.Module):
    """The image half of a CLIP model: frozen, in eval mode, without the text half.

    Args:
        network: images (B, 3, S, S), normalised -> embeddings (B, P).
        width: P.
        size: height and width of the images that ``network`` takes.
        mean, std: what its images are normalised by, of RGB in [0, 1].
        fingerprint: names the weights by their content.
    """

    def __init__(
        self,
        network: nn.Module,
        width: int,
        size: tuple[int, int],
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        fingerprint: str = '',
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.width, self.size, self.fingerprint = width, size, fingerprint
        self.mean, self.std = mean, std
        self.eval()

    def train(self, mode: bool = True) -> ImageTower:
        """Stays in eval mode."""
        return super().train(False)

    def prepare(self, rgb: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] as the network takes them: (B, 3, S, S), normalised.

        The whole image is resized as CLIP's preprocessing does (bicubic, antialiased, back into [0, 1]), without cropping: for
        square images the two are the same.
        """
        image = rgb if rgb.dtype == torch.float64 else rgb.float()
        image = (image + 1) / 2
        if tuple(image.shape[-2:]) != self.size:
            image = F.interpolate(image, self.size, mode='bicubic', antialias=True).clamp(0, 1)
        mean, std = (image.new_tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return ((image - mean) / std).to(next(self.network.parameters()).dtype)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> image embeddings (B, P), not normalised, without gradient."""
        kind = rgb.device.type
        if not torch.amp.is_autocast_available(kind):  # meta
            return self.network(self.prepare(rgb))
        # the surrounding autocast is meant for what is trained: embeddings are those of the stored precision
        with torch.autocast(kind, enabled=False):
            return self.network(self.prepare(rgb))


def load_image_tower(
    name: str | Path,
    pretrained: str | None = None,
    kind: str = 'open_clip',
    random_seed: int | None = None,
    dtype: str = 'fp32',
) -> ImageTower:
    """The image tower of a CLIP model.

    Args:
        name, pretrained: for ``kind='open_clip'`` see :func:`~mmdiffrep.openvocab.clip.load_clip`; for ``'transformers'`` a folder
            or hub id of a ``CLIPModel``, which needs no ``pretrained``.
        random_seed: draw new weights from this seed; ``name`` then is an architecture (``'ViT-L-14-336'``), or what has one.
        dtype: ``'fp32'``, ``'fp16'`` or ``'bf16'``: how the weights are stored and used.

    Raises:
        ValueError: an unknown kind or dtype, a random seed together with ``pretrained``, or what ``load_clip`` says.
        FileNotFoundError: nothing is there, or it cannot be fetched.
    """
    if kind not in KINDS or dtype not in DTYPES:
        raise ValueError(
            f'kind={kind!r}, dtype={dtype!r}; allowed: kind of {KINDS}, dtype of {list(DTYPES)}'
        )
    if pretrained is not None and (random_seed is not None or kind == 'transformers'):
        raise ValueError(
            f'pretrained={pretrained!r} has no use with kind={kind!r}, random_seed={random_seed}: a folder or hub id of '
            'transformers names its weights, random weights have none. Leave it out'
        )
    if kind == 'transformers':
        tower = _of_transformers(str(name), random_seed)
    else:
        tower = _of_open_clip(str(name), pretrained, random_seed)
    if not tower.fingerprint:
        tower.fingerprint = f'{type(tower.network).__name__} {weights_hash(tower.network)}'
    return tower.to(DTYPES[dtype])


def _of_open_clip(name: str, pretrained: str | None, random_seed: int | None) -> ImageTower:
    fingerprint = ''
    if random_seed is None:
        model: Any = load_clip(name, pretrained)[0]
    else:
        config = clip_architecture(name)
        fingerprint = random_fingerprint(random_seed, config)
        with seeded(random_seed):
            model = build_clip(config)
    visual = model.visual
    if getattr(visual, 'output_tokens', False):
        visual.output_tokens = False  # it would give its patches too
    size = visual.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    # fixed up by open_clip where it loads weights
    mean, std = getattr(visual, 'image_mean', MEAN), getattr(visual, 'image_std', STD)
    width = getattr(visual, 'output_dim', None)
    if width is None:  # timm's
        with torch.no_grad():
            visual.eval()
            width = visual(torch.zeros(1, 3, *size)).shape[1]
    return ImageTower(visual, width, size, tuple(mean), tuple(std), fingerprint)


def _of_transformers(name: str, random_seed: int | None) -> ImageTower:
    from transformers import AutoConfig, CLIPVisionModelWithProjection

    fingerprint = ''
    try:
        if random_seed is None:
            network = CLIPVisionModelWithProjection.from_pretrained(name, dtype=torch.float32)
            config = network.config
        else:
            config = AutoConfig.from_pretrained(name)
            config = getattr(config, 'vision_config', config)
            fingerprint = random_fingerprint(random_seed, config.to_dict())
            with seeded(random_seed):
                network = CLIPVisionModelWithProjection(config)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition('\n')[0]
        raise FileNotFoundError(
            f"CLIP {name!r} cannot be loaded by transformers ({first}). Give a folder with a CLIPModel's config.json and "
            "model.safetensors, or a hub id such as 'openai/clip-vit-large-patch14-336' where there is a network"
        ) from error
    mean, std = _transformers_normalisation(name)
    side: Any = config.image_size
    size = (side, side)
    return ImageTower(_Embeds(network), config.projection_dim, size, mean, std, fingerprint)


def _transformers_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What its image processor says, where one is there: CLIP's own otherwise."""
    from transformers import CLIPImageProcessor

    try:
        settings: Mapping[str, Any] = CLIPImageProcessor.get_image_processor_dict(name)[0]
    except OSError:
        return MEAN, STD
    return tuple(settings.get('image_mean', MEAN)), tuple(settings.get('image_std', STD))


class _Embeds(nn.Module):
    """Of what transformers gives, the image embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).image_embeds

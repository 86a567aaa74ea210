"""The stages of a convolutional CLIP as feature maps of images of any size.

Yu et al., Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional CLIP (FC-CLIP), NeurIPS 2023, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdiffrep.diffusion.extraction import pad_to_multiple
from mmdiffrep.diffusion.model_files import random_fingerprint
from mmdiffrep.diffusion.seeding import seeded

from .clip import build_clip, clip_architecture, load_clip, plain
from .hashing import weights_hash
from .tokenizer import open_clip

STRIDES = (4, 8, 16, 32)  # of the four stages, image pixels per map pixel
# built beside an image tower of random weights, and thrown away
NO_TEXT = dict(context_length=1, vocab_size=1, width=8, heads=1, layers=1)


class ConvTower(nn.Module):
    """Stages of a convolutional CLIP image tower: frozen, in eval mode, cut behind the last one that is read.

    Args:
        visual: image tower of an open_clip model: a ``ModifiedResNet``, or timm's network with four stages (ConvNeXt). It is changed.
        stages: which of the four maps are given, from 0, finest first.
        fingerprint: names the weights; None: a hash of them, the same whichever stages are read.

    Attributes:
        channels, strides: of the maps.
        mean, std: what the network's images are normalised by, of RGB in [0, 1].

    Raises:
        ValueError: a tower without such stages, or stages that it has not.
    """

    def __init__(
        self, visual: Any, stages: Sequence[int] = (0, 1, 2, 3), fingerprint: str | None = None
    ) -> None:
        super().__init__()
        self.stages = _checked(stages)
        constants = open_clip().constants
        # noted by open_clip in towers that it loads weights into
        self.mean = tuple(getattr(visual, 'image_mean', None) or constants.OPENAI_DATASET_MEAN)
        self.std = tuple(getattr(visual, 'image_std', None) or constants.OPENAI_DATASET_STD)
        trunk, channels, first = _staged(visual)
        self.fingerprint = fingerprint or weights_hash(trunk, self.mean, self.std)
        self.channels = [channels[k] for k in self.stages]
        self.strides = [STRIDES[k] for k in self.stages]
        self.indices = [first + k for k in self.stages]  # as forward_intermediates counts
        _cut(trunk, self.indices)
        self.trunk = trunk.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ConvTower:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> maps (B, C_k, H' / s_k, W' / s_k) of the padded image, without gradient.

        H', W' are the next multiples of the coarsest stride; the last row and column are repeated.
        """
        x = pad_to_multiple(rgb, self.strides[-1])
        mean, std = (x.new_tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        x = (((x + 1) / 2 - mean) / std).to(next(self.trunk.parameters()).dtype)
        found = self.trunk.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        return found['image_intermediates'] if isinstance(found, dict) else found


def load_conv_tower(
    name: str | Path,
    pretrained: str | None = None,
    random_seed: int | None = None,
    config: Mapping[str, Any] | None = None,
    stages: Sequence[int] = (0, 1, 2, 3),
) -> ConvTower:
    """The stages of a CLIP.

    Args:
        name, pretrained: see :func:`~mmdiffrep.openvocab.clip.load_clip`.
        random_seed: draw new weights from this seed for the architecture of ``name`` (or ``config``); nothing is fetched.
        config: open_clip's model config, in the place of ``name``: ``embed_dim`` and ``vision_cfg``. It has no trained weights; the
            seed is 0 by default.

    Raises:
        FileNotFoundError: nothing is there, or it cannot be fetched.
        ValueError: see ``load_clip``, :func:`~mmdiffrep.openvocab.clip.build_clip` and :class:`ConvTower`.
    """
    _checked(stages)  # before weights are fetched
    if random_seed is None and config is None:
        model: Any = load_clip(name, pretrained)[0]
        return ConvTower(model.visual, stages)
    seed = random_seed or 0
    known = clip_architecture(str(name)) if config is None else plain(config)
    # of the words nothing is used: dropping them keeps a full-size text tower from being drawn
    known = {key: known[key] for key in ('embed_dim', 'vision_cfg') if key in known}
    with seeded(seed):
        model = build_clip(dict(known, text_cfg=NO_TEXT))
    return ConvTower(model.visual, stages, random_fingerprint(seed, known))


def _checked(stages: Sequence[int]) -> list[int]:
    found = list(stages)
    if not found or found != sorted(set(found) & set(range(len(STRIDES)))):
        raise ValueError(
            f'stages {found} were asked for; allowed: at least one of 0, 1, 2, 3 (strides 4, 8, 16, 32), rising'
        )
    return found


def _staged(visual: Any) -> tuple[Any, list[int], int]:
    """The network that has the stages, their channels, and which of its intermediates is the first of them."""
    if isinstance(visual, open_clip().modified_resnet.ModifiedResNet):
        layers = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        return visual, [layer[-1].conv3.out_channels for layer in layers], 1
    trunk = getattr(visual, 'trunk', visual)
    infos = getattr(trunk, 'feature_info', None)
    infos = infos if isinstance(infos, list) else []
    strides = [info['reduction'] for info in infos[-len(STRIDES) :]]
    # a network that is told its input's size, as Swin is, takes no other
    if strides == list(STRIDES) and not hasattr(trunk, 'set_input_size'):
        first = len(infos) - len(STRIDES)
        return trunk, [info['num_chs'] for info in infos[first:]], first
    raise ValueError(
        f"this CLIP's image tower is a {type(trunk).__name__}, which gives no four maps at strides 4, 8, 16, 32 of an image of any size. "
        "Take a convolutional one: 'convnext_large_d_320', 'convnext_base_w', 'RN50', …"
    )


def _cut(trunk: Any, indices: Sequence[int]) -> None:
    """Take out of the network what is behind its last intermediate that is read."""
    if hasattr(trunk, 'prune_intermediate_layers'):
        trunk.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
        return
    for k in range(indices[-1] + 1, len(STRIDES) + 1):  # a ModifiedResNet's layers count from 1
        setattr(trunk, f'layer{k}', nn.Identity())
    trunk.attnpool = None

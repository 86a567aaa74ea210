"""FeedbackBackbone: the network looks a second time, with feedback from its first look (DifFeed).

Mukhopadhyay et al., "Do text-free diffusion models learn discriminative visual representations?", ECCV 2024, arXiv 2311.17921.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.taps import TapInfo
from mmdiffrep.registry import MODELS

from .diffusion_backbone import DiffusionBackbone

# the paper's blocks of the way up, and those of the way down that they are fed into: b -> 38 - b
GDC = {f'gdc:b{b}': f'gdc:b{38 - b}' for b in (21, 24, 27, 30, 33, 36)}


@MODELS.register_module()
class FeedbackBackbone(DiffusionBackbone):
    """Two looks at the same noised image; the maps are the second's.

    The first look, without gradient, reads the taps from which feedback comes. A small net for each, 1×1 convolution without bias,
    BatchNorm, ReLU, brings it to the channels of the block that it is fed into; there it is added, resized bilinearly, in the second
    look. Gradients reach the nets through the frozen network. All timesteps and draws share the nets.

    Args:
        feedback: tap -> tap: from where to where. At a ResBlock or attention of the way down it is added to what follows and
            to the skip connection. ``'gdc'``: the paper's pairs, for ADM-256 and networks with as many blocks.
        with_cp: compute activations of the second look again in the backward pass.
        denoiser, taps, timesteps, ...: :class:`DiffusionBackbone`'s.

    Raises:
        ValueError: no feedback, taps that give no maps, or feedback into what runs after the last tap.
    """

    def __init__(
        self,
        denoiser: Mapping[str, Any] | Denoiser,
        taps: Sequence[str],
        feedback: Mapping[str, str] | str = 'gdc',
        **kwargs: Any,
    ) -> None:
        pairs = _pairs(feedback)
        if not kwargs.get('grad_through', True):
            raise ValueError('grad_through=False would leave the feedback nets untrained: leave it out')
        if kwargs.get('compile'):
            raise ValueError('compile is not for feedback, which is added to activations on their way: leave it out')
        kwargs['grad_through'] = True
        super().__init__(denoiser, taps, keep_taps=list(dict.fromkeys([*pairs, *pairs.values()])), **kwargs)
        sources, targets = self._infos(list(pairs)), self._infos(list(pairs.values()))
        self._check_order(list(pairs.values()), targets)
        self.feedback = pairs
        self.strides = list(zip((s.stride for s in sources), (t.stride for t in targets)))
        self.nets = nn.ModuleList(_net(s.channels, t.channels) for s, t in zip(sources, targets))
        self.extractor = _TwoLooks(self)

    def _infos(self, names: Sequence[str]) -> list[TapInfo]:
        distinct = list(dict.fromkeys(names))
        infos = FeatureExtractor(self.denoiser, distinct).infos()
        return [infos[distinct.index(name)] for name in names]

    def _check_order(self, names: Sequence[str], targets: Sequence[TapInfo]) -> None:
        last = max(self.tap_infos, key=lambda info: info.order)
        late = [name for name, info in zip(names, targets) if info.order >= last.order]
        static = [name for name in names if self.denoiser.is_static(name)]
        if late or static:
            raise ValueError(
                f'feedback into {late or static} would change none of the maps at taps={self.taps}: feed into blocks that run before '
                f'{last.tap!r} and are no part of an autoencoder'
            )

    def feed(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first look's maps -> what is added in the second: for each target a map (B, C, h, w)."""
        added: dict[str, Tensor] = {}
        for (source, target), net, (s, t) in zip(self.feedback.items(), self.nets, self.strides):
            m = found[source]
            # with the nets' precision; the denoiser casts what is added to its own
            value = net(m.to(net[0].weight.dtype))
            size = (m.shape[-2] * s // t, m.shape[-1] * s // t)
            if value.shape[-2:] != size:
                value = F.interpolate(value, size, mode='bilinear', align_corners=False)
            added[target] = added[target] + value if target in added else value
        return added


class _TwoLooks(FeatureExtractor):
    """A FeatureExtractor whose look is the second of two."""

    def __init__(self, backbone: FeedbackBackbone) -> None:
        plain = backbone.extractor
        # one draw at once: BatchNorm in the feedback nets must not see several draws of an image as several images
        super().__init__(plain.denoiser, plain.taps, plain.timesteps, plain.noise, looks=1, memory=plain.memory)
        self.backbone = [backbone]  # in a list: no module in the module tree

    def _looks_at_once(self, x_t: Tensor, condition: Condition | None) -> int | None:
        """A budget puts draws together where the feedback nets do not count them."""
        return None if self.backbone[0].training else super()._looks_at_once(x_t, condition)

    def look(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> dict[str, Tensor]:
        backbone = self.backbone[0]
        with torch.no_grad():
            first = self.denoiser.features(x_t, t, condition, list(backbone.feedback), check=False)
        return self.denoiser.features(x_t, t, condition, self.moving, inject=backbone.feed(first), check=False)


def _net(channels: int, wanted: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, wanted, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU(inplace=True))


def _pairs(feedback: Mapping[str, str] | str) -> dict[str, str]:
    if isinstance(feedback, str):
        if feedback != 'gdc':
            raise ValueError(f"feedback={feedback!r} is unknown; allowed: 'gdc', or a dict of taps: from where to where")
        return dict(GDC)
    if not feedback:
        raise ValueError('feedback is empty: name at least one tap, and the tap that it is fed into')
    return dict(feedback)

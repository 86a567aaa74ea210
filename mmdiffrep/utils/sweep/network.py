"""The network of a sweep: all taps of a config's DiffusionBackbone, read in one look."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.models.backbones import DiffusionBackbone
from mmdiffrep.registry import MODELS

BLOCK = re.compile(r'(?:down_blocks|up_blocks)\.\d+\.(resnets|attentions)\.(\d+)|mid_block|(?:\w+_)?transformer_blocks\.\d+')


def backbone_config(cfg: Any) -> dict[str, Any]:
    """The config of the DiffusionBackbone in a model's config, also inside of a CachedBackbone.

    Raises:
        ValueError: the model has none.
    """
    found = dict((cfg.get('model') or {}).get('backbone') or {})
    while str(found.get('type', '')).rpartition('.')[2] == 'CachedBackbone':
        found = dict(found['backbone'])
    kind = str(found.get('type', 'none')).rpartition('.')[2]
    if kind not in ('DiffusionBackbone', 'FeedbackBackbone'):
        raise ValueError(
            f'the config\'s backbone is {kind}; a sweep needs mmdiffrep.DiffusionBackbone, whose timesteps and taps it tries'
        )
    for key in ('adapter', 'feedback'):
        found.pop(key, None)
    return dict(found, type='mmdiffrep.DiffusionBackbone')


class SweepNetwork:
    """A frozen DiffusionBackbone that reads all taps at any one timestep.

    Args:
        config: of the backbone.
        patterns: tap strings, paper aliases or patterns (``up_blocks.*``); None: every block that gives maps.
        untrained: the same network with random weights.

    Attributes:
        taps, channels: of each tap.
        looks: images that the network has looked at so far.
    """

    def __init__(self, config: dict[str, Any], patterns: Sequence[str] | None, device: str, untrained: bool = False) -> None:
        config = dict(config, trainable=False, with_cp=False)
        if untrained:
            config['denoiser'] = dict(config['denoiser'], random_seed=0)
        probe = MODELS.build(dict(config['denoiser']))
        side = -(-max(64, probe.divisor) // probe.divisor) * probe.divisor
        self.taps = chosen_taps(probe, patterns, (side, side))
        del probe
        self.backbone = MODELS.build(dict(config, taps=self.taps)).to(device).eval()
        assert isinstance(self.backbone, DiffusionBackbone)
        self.channels = [info.channels for info in self.backbone.tap_infos[: len(self.taps)]]
        self.looks = 0
        self.backbone.denoiser.network.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        self.looks += len(x)

    def aim(self, timestep: float, noise: dict[str, Any]) -> None:
        """From now on look at this timestep, with this noise."""
        backbone = self.backbone
        backbone.extractor = FeatureExtractor(backbone.denoiser, self.taps, timestep, NoisePolicy(**noise))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images as the data preprocessor left them -> each tap's map."""
        return list(self.backbone.features(images))


def chosen_taps(denoiser: Any, patterns: Sequence[str] | None, size: tuple[int, int]) -> list[str]:
    """Taps in the order of execution. Raises: ValueError for a pattern that fits none."""
    known = [name for name, info in denoiser.tap_info(size).items() if info.channels > 0]
    if patterns is None:
        blocks = [name for name in known if BLOCK.fullmatch(name)]
        # of a ResBlock with attention, what leaves the attention
        blocks = [name for name in blocks if name.replace('resnets', 'attentions') not in blocks or 'resnets' not in name]
        if not blocks:
            raise ValueError('the network has no block of a known name: give --taps (tools/list_taps.py prints them)')
        return blocks
    taps: list[str] = []
    for pattern in patterns:
        if any(sign in pattern for sign in '*?['):
            found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
            if not found:
                raise ValueError(f'--taps {pattern!r} fits no tap; for example {known[:3]} … (tools/list_taps.py prints all)')
        else:
            found = [str(denoiser.tap(pattern))]
        taps += [name for name in found if name not in taps]
    return taps

"""LayerDecayConstructor: rates that fall from the last layer of a fine-tuned denoiser to its first."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.models.backbones.holder import DenoiserHolder
from mmdiffrep.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmdiffrep.utils.taps import format_table


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise rates for models around a denoiser that is trained, whole or in part.

    ``optim_wrapper = dict(constructor='mmdiffrep.LayerDecayConstructor', paramwise_cfg=dict(decay_rate=0.75), …)``

    A layer is a ResBlock with its attention, a resampler, the middle block, or a transformer block, in the order in which they run;
    what makes the input and the time embedding is the first. Of n layers the k-th from 0 learns at rate · decay_rate^(n − k);
    everything outside of the denoiser (adapter, head) at the full rate. Biases and other vectors (norms) are not decayed.

    ``paramwise_cfg``:
        decay_rate: above 0, at most 1.
        norm_decay: True decays the weights of vectors, too. Default False.

    Raises:
        ValueError: a decay rate outside its range, other entries, a model in which no denoiser is trained.
    """

    def _validate_cfg(self) -> None:
        settings = dict(self.paramwise_cfg)
        self.decay_rate = settings.pop('decay_rate', None)
        self.norm_decay = settings.pop('norm_decay', False)
        fits = isinstance(self.decay_rate, (int, float)) and 0 < self.decay_rate <= 1
        if settings or not fits:
            raise ValueError(
                f'paramwise_cfg={dict(self.paramwise_cfg)} does not fit; allowed: dict(decay_rate=above 0 … 1, norm_decay=False)'
            )

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        """One group for each layer, decayed or not."""
        depths = self._depths(module)
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer, exponent = depths.get(name, ('outside', 0))
            decayed = self.norm_decay or parameter.ndim > 1
            if (layer, decayed) not in groups:
                group: dict[str, Any] = dict(params=[], lr=self.base_lr * self.decay_rate**exponent)
                if self.base_wd is not None:
                    group['weight_decay'] = self.base_wd if decayed else 0.0
                groups[layer, decayed] = group
            groups[layer, decayed]['params'].append(parameter)
        params += groups.values()
        counts: Counter[tuple[str, float]] = Counter()
        for (layer, _decayed), group in groups.items():
            counts[layer, group['lr']] += sum(p.numel() for p in group['params'])
        rows = [[layer, str(count), f'{rate:.3g}'] for (layer, rate), count in counts.items()]
        print_log('Layer-wise rates:\n' + format_table(['layer', 'parameters', 'rate'], rows), 'current')

    def _depths(self, module: nn.Module) -> dict[str, tuple[str, int]]:
        """Of each of a denoiser's trained parameters: its layer, and how many layers run from there on."""
        found: dict[str, tuple[str, int]] = {}
        for place, holder in module.named_modules():
            if not isinstance(holder, DenoiserHolder):
                continue
            layers = execution_order(holder.denoiser)
            place = f'{place}.' if place else ''
            for name, parameter in holder.named_parameters():
                if parameter.requires_grad:
                    # a network that is registered whole stands below this name, its trained parts as well
                    path = name.removeprefix('network.') if 'network' in holder._modules else name
                    layer = layer_of(path)
                    number = layers.index(layer) if layer in layers else 0
                    found[place + name] = (layers[number], len(layers) - number)
        if not found:
            raise ValueError(
                'LayerDecayConstructor found no denoiser that is trained: set DiffusionBackbone(trainable=True, or the paths of its parts)'
            )
        return found


def layer_of(path: str) -> str:
    """The layer of a module or parameter of a diffusers network: ``down_blocks.1.attentions.0.to_q`` -> ``down_blocks.1.0``."""
    parts = path.split('.')
    if parts[0] in ('down_blocks', 'up_blocks') and len(parts) > 2:
        return '.'.join([*parts[:2], parts[3] if parts[2] in ('resnets', 'attentions') and len(parts) > 3 else parts[2]])
    if parts[0].endswith('transformer_blocks') and len(parts) > 1:
        return '.'.join(parts[:2])
    return parts[0]


@torch.no_grad()
def execution_order(denoiser: Denoiser) -> list[str]:
    """A denoiser's layers in the order in which they run; what is embedded before the first is one layer."""
    side = denoiser.divisor * 2
    # what a shortened network passes through has none
    owners = {layer_of(name) for name, _ in denoiser.network.named_parameters()}
    layers: list[str] = []
    for event in denoiser.trace((side, side)):
        parts = event.tap.path.split('.')
        if len(parts) < 3 and parts[0] in ('down_blocks', 'up_blocks'):
            continue  # a whole block, which begins with its first layer
        layer = layer_of(event.tap.path)
        if layer in owners and layer not in layers:
            layers.append(layer)
    blocks = [layer for layer in layers if '.' in layer or layer == 'mid_block']
    if not blocks:
        return layers
    first = layers.index(blocks[0])
    return ['input', *layers[first:]]

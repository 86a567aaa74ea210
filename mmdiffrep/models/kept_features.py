"""Whether a backbone's features may be kept, and what they are of."""

from __future__ import annotations

import contextlib
import hashlib
from importlib import metadata
from typing import Any

from torch import Tensor, nn

from mmdiffrep.openvocab.hashing import tensor_bytes, weights_hash
from mmdiffrep.version import __version__

LIBRARIES = ('torch', 'torchvision', 'diffusers', 'numpy', 'timm', 'open_clip_torch', 'mmcv', 'mmcv-lite')


def check_frozen(model: Any, who: str = 'a PixelEnsemble') -> None:
    """ValueError for features that may not be kept, saying why; ``who`` needs them."""
    for part in ('backbone', 'neck'):
        trained = [
            name
            for name, p in getattr(model, part, nn.Module()).named_parameters()
            if p.requires_grad
        ]
        if trained:
            raise ValueError(
                f'the {part} has {len(trained)} trained parameters ({", ".join(trained[:3])} …), so that its features would change with every '
                f"step, and {who}'s are computed once. Freeze it: DiffusionBackbone(trainable=False, adapter=None), "
                'ResNet(frozen_stages=4)'
            )
    noise = getattr(model.backbone, 'noise', None)
    if noise is not None and not noise.deterministic:
        raise ValueError(
            f"noise=dict(kind='fresh') gives an image other features at every look, and {who}'s are computed once: use "
            "dict(kind='shared', seed=0) or dict(kind='per_image')"
        )


def backbone_mark(model: Any) -> str:
    """Names what decides the features of an image: structure, settings, weights as they are in memory, versions, device."""
    found = hashlib.sha256()
    parts: list[Any] = [versions()]
    for name in ('backbone', 'neck'):
        part = getattr(model, name, None)
        if part is None:
            continue
        parts += [repr(part), _settings(part)]
        tensors: dict[str, Tensor] = dict(part.named_parameters()) | dict(part.named_buffers())
        for key, value in sorted(tensors.items()):
            found.update(f'{key} {value.dtype} {value.device.type}'.encode() + tensor_bytes(value))
    found.update(repr(parts).encode())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Of this package and of the libraries that features are computed with."""
    found = dict(mmdiffrep=__version__)
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _settings(part: Any) -> dict[str, str]:
    """A DiffusionBackbone's that its repr does not show."""
    names = (
        'bgr',
        'switches',
        'class_id',
        'amp_dtype',
        'windows',
        'taps',
        'timesteps',
        'noise',
        'out_strides',
        'strides',
        '_prompts',
    )
    told = {name: repr(getattr(part, name)) for name in names if hasattr(part, name)}
    denoiser = getattr(part, 'denoiser', None)
    if denoiser is not None:
        told['weights'], told['schedule'] = (
            str(denoiser.fingerprint),
            repr(denoiser.schedule.to_config()),
        )
        told['dtype'] = str(next(denoiser.network.parameters()).dtype)
        told['values'] = weights_hash(denoiser)  # outside the module tree, and perhaps not what its files hold
    return told

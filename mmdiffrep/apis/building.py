"""What everything needs that asks a trained model about files: a device, and the test pipeline without annotations."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config

from mmdiffrep.utils.cli import type_name

OF_LABELS = ('CheckLabels', 'IgnoreSmallClasses')  # steps that need labels, besides what loads them


def chosen_device(device: str | torch.device | None) -> torch.device:
    """Default: the accelerator where there is one. Raises: ValueError where it cannot be used."""
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(
            f'device={str(device)!r} cannot be used ({str(error).splitlines()[0]})'
        ) from error
    return chosen


def image_steps(cfg: Config) -> list[dict[str, Any]]:
    """The test pipeline without annotations; the first step loads a file. Raises: ValueError if it does not."""
    data = test_dataset(cfg)
    steps = data.get('pipeline') or cfg.get('test_pipeline') or []
    kept = [step for step in steps if not _of_labels(type_name(step))]
    if not kept or type_name(kept[0]) != 'LoadImageFromFile':
        raise ValueError(
            f'the test pipeline is {[type_name(step) for step in steps]}; it must begin with LoadImageFromFile'
        )
    return kept


def test_dataset(cfg: Config) -> dict[str, Any]:
    """The config of the innermost test data set."""
    data = cfg.get('test_dataloader', {}).get('dataset', {})
    while 'pipeline' not in data and 'dataset' in data:
        data = data['dataset']
    return data


def _of_labels(kind: str) -> bool:
    return kind in OF_LABELS or (kind.startswith('Load') and kind.endswith('Annotations'))

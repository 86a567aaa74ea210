"""ZeroShotAccuracy: classes told by their names alone, those seen in training and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmdiffrep.registry import METRICS


@METRICS.register_module()
class ZeroShotAccuracy(BaseMetric):
    """Share of images, in percent, whose best score among all class names is their own class's.

    Every image is compared with all names, seen and held out. Reports ``zero_shot/all``, ``zero_shot/seen`` and
    ``zero_shot/heldout`` (images of seen, of held-out classes), with ``parts`` also the share whose best name has the right word there,
    e.g. ``zero_shot/heldout_colour``; what guessing a name gives (``zero_shot/chance``, ``zero_shot/chance_colour``), and the number of
    images in each group.

    Args:
        class_names: the names in the labels' order, as the model has them.
        held_out: those that training never showed.
        parts: what each word of a name is, e.g. ``('colour', 'shape')``; every name then has so many words.

    Raises:
        ValueError: a held-out name is no class, or a name has another number of words.
    """

    default_prefix = 'zero_shot'

    def __init__(
        self,
        class_names: Sequence[str],
        held_out: Sequence[str] = (),
        parts: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        unknown = sorted(set(held_out) - set(class_names))
        if unknown:
            raise ValueError(
                f'held_out has {unknown}, which are not among the {len(class_names)} class_names'
            )
        self.names = [name.split() for name in class_names]
        bad = [' '.join(words) for words in self.names if parts and len(words) != len(parts)]
        if bad:
            raise ValueError(
                f'parts={tuple(parts)} names {len(parts)} words, which class names {bad[:3]} have not'
            )
        self.held_out = np.array([name in held_out for name in class_names])
        self.parts = list(parts)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            if 'scores' not in sample or 'label' not in sample:
                raise ValueError(
                    f'ZeroShotAccuracy needs scores and a label, a sample has {sorted(sample)}: set class_names of the model, and a data '
                    'set with labels, such as mmdiffrep.InstanceCrops'
                )
            scores = sample['scores'].numpy()
            if scores.shape != (len(self.names),):
                raise ValueError(
                    f'the model gives {scores.shape} scores, the metric has {len(self.names)} class_names'
                )
            self.results.append((int(sample['label']), int(scores.argmax())))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        labels, guesses = np.array(results).T
        held = self.held_out[labels]
        words = np.array(self.names) if self.parts else np.empty((len(self.names), 0))  # (K, parts)
        metrics = dict(chance=100 / len(self.names))
        for part, column in zip(self.parts, words.T):
            metrics[f'chance_{part}'] = 100 / len(set(column))
        for group, chosen in dict(all=np.full(len(labels), True), seen=~held, heldout=held).items():
            if not chosen.any():
                continue
            metrics[group] = _percent(labels[chosen] == guesses[chosen])
            for part, column in zip(self.parts, words.T):
                metrics[f'{group}_{part}'] = _percent(
                    column[labels[chosen]] == column[guesses[chosen]]
                )
            metrics[f'{group}_images'] = int(chosen.sum())
        return metrics


def _percent(right: np.ndarray) -> float:
    return float(100 * right.mean())

"""Asking trained models. Each name is imported when it is asked for: only some need mmdet."""

from importlib import import_module
from typing import Any

_HOMES = dict(
    Matcher='matcher',
    OpenVocabInferencer='open_vocab_inferencer',
    PseudoLabels='pseudo_labels',
    ResultFolder='segmentation_result',
    SegmentationResult='segmentation_result',
    UncertainSegmenter='uncertain_segmenter',
)

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {__all__}')
    return getattr(import_module(f'.{_HOMES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

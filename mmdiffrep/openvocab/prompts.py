"""Prompt templates: sentences around a class name, over whose embeddings the mean is taken.

Radford et al., ICML 2021 (ImageNet's 80); Gu et al., ViLD, ICLR 2022 (14).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .names import nearest
from .tokenizer import open_clip

_SIZES = ('small', 'medium', 'large')
TEMPLATES: dict[str, tuple[str, ...]] = {
    'none': ('{}',),
    'single': ('a photo of a {}.',),
    'vild': (
        'a photo of a {}.',
        'This is a photo of a {}',
        'There is a {} in the scene',
        'There is the {} in the scene',
        'a photo of a {} in the scene',
        *(f'a photo of a {size} {{}}.' for size in _SIZES),
        *(f'This is a photo of a {size} {{}}.' for size in _SIZES),
        *(f'There is a {size} {{}} in the scene.' for size in _SIZES),
    ),
}
IMAGENET = 'imagenet'  # open_clip's own list, read when it is asked for


def templates(source: str | Sequence[str]) -> tuple[str, ...]:
    """Templates, each with one ``{}`` where the name belongs.

    Args:
        source: ``'none'``, ``'single'``, ``'vild'`` (14), ``'imagenet'`` (80), a template, or a list of templates.

    Raises:
        ValueError: an unknown name, no template, or one without ``{}`` or with several.
        ImportError: ``'imagenet'`` without open_clip.
    """
    if isinstance(source, str):
        if source in TEMPLATES:
            return TEMPLATES[source]
        if source == IMAGENET:
            return _imagenet()
        if '{}' not in source:
            known = [*TEMPLATES, IMAGENET]
            near = nearest(source, known)
            raise ValueError(
                f"templates={source!r} is neither a known set nor a template with '{{}}'. Nearest: {near}; the sets are {known}"
            )
        source = [source]
    found = tuple(source)
    bad = [t for t in found if not isinstance(t, str) or t.count('{}') != 1]
    if bad or not found:
        raise ValueError(
            f"templates {list(bad or found)!r}: give at least one, and '{{}}' once in each, where the class name belongs"
        )
    return found


def fill(template: str, name: str) -> str:
    """The template about a name, whose own braces mean nothing."""
    return template.replace('{}', name)


@lru_cache
def _imagenet() -> tuple[str, ...]:
    return tuple(template('{}') for template in open_clip().OPENAI_IMAGENET_TEMPLATES)

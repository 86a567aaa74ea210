"""Comparing class names, and making readable ones of those that data sets use."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

# run together or abbreviated in data sets, with the words that others have for the same; compared by key()
SPELLED = {
    'aeroplane': ('aeroplane', 'airplane'),
    'diningtable': ('dining table',),
    'motorbike': ('motorbike', 'motorcycle'),
    'playingfield': ('playing field',),
    'pottedplant': ('potted plant',),
    'sofa': ('sofa', 'couch'),
    'tvmonitor': ('tv monitor', 'tv', 'television'),
    'window blind': ('window blind',),
}
# COCO's 'wall-brick', 'floor-wood': the material stands behind
MATERIAL = re.compile(r'(wall|floor|ceiling)-(?!other|merged|stuff)([a-z]+)')
# COCO's 'wall-other-merged', 'door-stuff'
SUFFIX = re.compile(r'(.+?)(-other)?(-merged|-stuff)?')
# LVIS' 'mouse_(computer_equipment)', 'monitor_(computer_equipment) computer_monitor'
EXPLAINED = re.compile(r'(.+?) (\(.+?\)) ?(.*)')


def key(name: str) -> str:
    """A name as it is compared: case, hyphens, underscores and runs of spaces make no difference."""
    return re.sub(r'[-_\s]+', ' ', unicodedata.normalize('NFKC', name)).strip().casefold()


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The ``known`` names most like one, as they are written."""
    written = {key(other): other for other in known}
    return [written[k] for k in difflib.get_close_matches(key(name), written, count, 0.4)]


def clean(raw: str) -> tuple[str, ...]:
    """A data set's name as words, the first what it is called.

    ==================================  ==========================================
    ``'painting, picture'`` (ADE20K)    ``('painting', 'picture')``
    ``'wall-other-merged'`` (COCO)      ``('wall',)``
    ``'floor-wood'`` (COCO)             ``('wood floor',)``
    ``'aerosol_can'`` (LVIS)            ``('aerosol can',)``
    ``'bus_(vehicle)'`` (LVIS)          ``('bus (vehicle)', 'bus')``
    ``'tvmonitor'`` (VOC)               ``('tv monitor', 'tv', 'television')``
    ==================================  ==========================================
    """
    names: list[str] = []
    for part in raw.split(','):
        names += _clean_one(' '.join(part.replace('_', ' ').split()))
    return unique(names)


def _clean_one(name: str) -> list[str]:
    if key(name) in SPELLED:
        return list(SPELLED[key(name)])
    if material := MATERIAL.fullmatch(name):
        return [f'{material[2]} {material[1]}']
    if explained := EXPLAINED.fullmatch(name):
        bare, what, more = explained.groups()
        return [f'{bare} {what}', *([more] if more else []), bare]
    suffix = SUFFIX.fullmatch(name)
    return [suffix[1]] if suffix else [name]


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Without repetitions of what is the same to :func:`key`; the first of them stays."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(key(name), name)
    return tuple(first.values())


def settle(groups: Sequence[tuple[str, ...]], raw: Sequence[str | None]) -> list[tuple[str, ...]]:
    """Names of classes, of which no two share one, as far as dropping synonyms can do that.

    Data sets share them: ADE20K has 'counter' and 'buffet, counter, sideboard'. A synonym that another class has too is dropped; where
    cleaned names collide ('mirror', 'mirror-stuff'), the data set's own return. Groups whose ``raw`` is None stay as they are.
    """
    calls = Counter(key(group[0]) for group in groups)
    kept = [
        (own, *group[1:]) if own is not None and calls[key(group[0])] > 1 else group
        for group, own in zip(groups, raw)
    ]
    owners = Counter(k for group in kept for k in {key(name) for name in group})
    return [
        group if own is None else (group[0], *(n for n in group[1:] if owners[key(n)] == 1))
        for group, own in zip(kept, raw)
    ]

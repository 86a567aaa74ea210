"""Vocabularies of well-known data sets, taken at run time from the packages that have them.

Nothing but names of classes is read. What no installed package has is a user's own file: ``Vocabulary.parse('names.json')``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Collection
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from .names import clean, nearest
from .vocabulary import Category, Vocabulary

# instances of PASCAL are annotated for these alone; all else of Pascal Context is stuff
VOC_THINGS = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike',
    'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
CONTEXT_THINGS = tuple('table' if name == 'diningtable' else name for name in VOC_THINGS)
# mmseg's name of an ADE20K class -> the first of mmdet's, where they differ
ADE_RENAMED = {
    'apparel': 'clothes', 'ashcan': 'trash can', 'bathtub': 'tub', 'railing': 'rail', 'streetlight': 'street lamp',
    'swimming pool': 'pool', 'television receiver': 'tv', 'waterfall': 'falls', 'windowpane': 'window',
}  # fmt: skip


def ready(name: str, without: Collection[str] = ()) -> Vocabulary:
    """A vocabulary by its name.

    ======================  ===============  =====================================================================
    name                    things + stuff   from
    ======================  ===============  =====================================================================
    ``coco-panoptic``       80 + 53          mmdet ``CocoPanopticDataset``
    ``ade20k-150``          100 + 50         mmseg ``ADE20KDataset``, things and synonyms of mmdet's
    ``ade20k-panoptic``     100 + 50         mmdet ``ADE20KPanopticDataset``: the same in its order
    ``pascal-context-59``   20 + 39          mmseg ``PascalContextDataset59``; PASCAL's 20 objects are the things
    ``voc-21``              20 + 1           mmseg ``PascalVOCDataset``; the background is stuff
    ``cityscapes``          8 + 11           mmseg ``CityscapesDataset``; mmdet's 8 are the things
    ``lvis``                1203 + 0         mmdet ``LVISV1Dataset``
    ``toyscenes``           36 + 7           this package
    ``toyscenes-seen``      30 + 7           without the combinations that training never shows
    ======================  ===============  =====================================================================

    The order given (``Vocabulary.order``) is that of the data set's labels.

    Args:
        without: names of classes to leave out, to hold them out of a training, say.

    Raises:
        ValueError: an unknown name, here or in ``without``.
        ImportError: the package that has it is not installed.
    """
    if name not in _MAKERS:
        raise ValueError(
            f'{name!r} is not a ready vocabulary. Nearest: {nearest(name, READY)}; there are {list(READY)}'
        )
    vocabulary = _made(name)
    return vocabulary.without(without) if without else vocabulary


@lru_cache
def _made(name: str) -> Vocabulary:
    return _MAKERS[name]()


def _metainfo(package: str, dataset: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(f'{package}.datasets')
    except ImportError as error:
        distribution = dict(mmseg='mmsegmentation').get(package, package)
        raise ImportError(
            f'this vocabulary is taken from {package}, which cannot be imported ({error}): pip install {distribution}, or give the names '
            'yourself, as a list or a file'
        ) from error
    return dict(getattr(module, dataset).METAINFO)


def _of(package: str, dataset: str) -> Vocabulary:
    return Vocabulary.parse(_metainfo(package, dataset))


def _with_things(dataset: str, things: Collection[str]) -> Vocabulary:
    classes = _metainfo('mmseg', dataset)['classes']
    return Vocabulary.parse(
        dict(classes=classes, thing_classes=[name for name in classes if name in things])
    )


def _cityscapes() -> Vocabulary:
    return _with_things('CityscapesDataset', _metainfo('mmdet', 'CityscapesDataset')['classes'])


def _ade20k() -> Vocabulary:
    """mmseg's names in mmseg's order, which is that of the label images; mmdet's things and further synonyms."""
    meta = _metainfo('mmdet', 'ADE20KPanopticDataset')
    panoptic = {clean(raw)[0]: raw for raw in meta['classes']}
    entries = []
    for written in _metainfo('mmseg', 'ADE20KDataset')['classes']:
        name = written.strip()  # 'bed '
        raw = panoptic[clean(ADE_RENAMED.get(name, name))[0]]
        is_thing = raw in meta['thing_classes']
        entries.append(dict(name=name, synonyms=list(clean(raw)), isthing=is_thing))
    return Vocabulary.parse(entries)


def _toyscenes(seen: bool = False) -> Vocabulary:
    # by its file: the package around it imports the toolkits
    file = Path(__file__).parents[1] / 'datasets' / 'toyscenes' / 'classes.py'
    spec = importlib.util.spec_from_file_location('_toyscenes_classes', file)
    assert spec is not None and spec.loader is not None
    classes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(classes)
    things = [Category((name,)) for name in classes.THINGS]
    whole = Vocabulary((*things, *(Category((name,), is_thing=False) for name in classes.STUFF)))
    return whole.without(classes.HELD_OUT) if seen else whole


_MAKERS: dict[str, Callable[[], Vocabulary]] = {
    'coco-panoptic': partial(_of, 'mmdet', 'CocoPanopticDataset'),
    'ade20k-150': _ade20k,
    'ade20k-panoptic': partial(_of, 'mmdet', 'ADE20KPanopticDataset'),
    'pascal-context-59': partial(_with_things, 'PascalContextDataset59', CONTEXT_THINGS),
    'voc-21': partial(_with_things, 'PascalVOCDataset', VOC_THINGS),
    'cityscapes': _cityscapes,
    'lvis': partial(_of, 'mmdet', 'LVISV1Dataset'),
    'toyscenes': _toyscenes,
    'toyscenes-seen': partial(_toyscenes, seen=True),
}
READY = tuple(_MAKERS)

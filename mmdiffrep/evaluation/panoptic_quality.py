"""PanopticQuality: PQ, SQ and RQ over all classes, things, stuff, and classes that training saw and did not see.

Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4, with panopticapi's rules for void and crowds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from mmdiffrep.openvocab.names import key
from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.registry import METRICS

from .panoptic_files import PanopticFiles, numbers, place_by_name
from .pq import averages, image_statistics, per_class


@METRICS.register_module()
class PanopticQuality(BaseMetric):
    """PQ, SQ, RQ in percent: ``panoptic/PQ``, for things ``PQ_th``, stuff ``PQ_st``, and, if it is known what training saw, ``PQ_seen``,
    ``PQ_unseen``, ``PQ_th_seen``, ``PQ_th_unseen``, ``PQ_st_seen``, ``PQ_st_unseen``; the same for SQ and RQ. An average is over the
    classes that occur, in ground truth or predictions; a group in which none does is not reported.

    Samples have ``pred_panoptic``: ``dict(ids=(H, W), segments=[dict(id=, category=), …])``, ``category`` the number of the class, id 0
    for nothing. Ground truth is ``gt_panoptic``, the same with ``iscrowd`` where it is one, or comes from files.

    Args:
        ann_file: COCO panoptic JSON with the ground truth; samples are found in it by ``img_id``. Its categories belong to classes by
            name; those that are no class are void.
        seg_prefix: folder of its PNGs; default: the JSON's name without ``.json``.
        vocabulary: the classes, as ``Vocabulary.parse`` takes them; ``category`` is a place in it, and synonyms find categories of the
            JSON too. Default: the data set's ``classes`` and ``thing_classes``, or without the latter the JSON's ``isthing``.
        unseen: names of classes that training did not see.
        seen_in: what training saw, as ``Vocabulary.parse`` takes it, e.g. a list of names; a class is seen if it shares a name. With
            neither, all is reported together.
        classwise: log a table of all classes that occur.

    Raises:
        ValueError: an unknown name; a segment without category, without pixels, or pixels without a segment; sizes that differ.
        FileNotFoundError: a missing JSON or PNG.
    """

    default_prefix = 'panoptic'

    def __init__(
        self,
        ann_file: str | None = None,
        seg_prefix: str | None = None,
        vocabulary: Any = None,
        unseen: Sequence[str] | None = None,
        seen_in: Any = None,
        classwise: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if unseen is not None and seen_in is not None:
            raise ValueError('unseen and seen_in say the same: give one of them')
        self.files = None if ann_file is None else PanopticFiles(ann_file, seg_prefix)
        self.vocabulary = None if vocabulary is None else Vocabulary.parse(vocabulary)
        self.unseen, self.seen_in, self.classwise = unseen, seen_in, classwise

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        names = self.names()
        for sample in data_samples:
            if 'pred_panoptic' not in sample:
                raise ValueError(
                    f'PanopticQuality needs pred_panoptic, a sample has {sorted(sample)}: it is for open-vocabulary panoptic models'
                )
            name = f'image {sample.get("img_id", len(self.results))}'
            truth = self._truth(sample, name)
            found = image_statistics(truth, sample['pred_panoptic'], len(names), name)
            # most classes are in no image: keep the others' rows
            used = np.flatnonzero(found.any(1))
            self.results.append((used, found[used]))

    def _truth(self, sample: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        if self.files is not None:
            if 'img_id' not in sample:
                raise ValueError(
                    f"a sample has no img_id, by which {self.files.ann_file} is read; it has {sorted(sample)}. Put 'img_id' among "
                    'PackDetInputs’ meta_keys'
                )
            return self.files.truth(sample['img_id'], self._places())
        if 'gt_panoptic' not in sample:
            raise ValueError(
                f'{name} has no gt_panoptic, and no ann_file is given; it has {sorted(sample)}. Give the metric ann_file (COCO panoptic '
                'JSON)'
            )
        return sample['gt_panoptic']

    def _places(self) -> dict[str, int]:
        if self.vocabulary is None:
            return place_by_name([[name] for name in self.names()])
        return place_by_name([category.names for category in self.vocabulary.categories])

    def names(self) -> list[str]:
        """The classes' names, in the order of their numbers."""
        if self.vocabulary is not None:
            return list(self.vocabulary.names)
        names = (self.dataset_meta or {}).get('classes')
        if not names:
            raise ValueError(
                'PanopticQuality knows no classes: give it vocabulary=, or a data set with classes in its metainfo'
            )
        return list(names)

    def is_thing(self) -> np.ndarray:
        """Which classes are things (K,)."""
        if self.vocabulary is not None:
            return np.array(self.vocabulary.is_thing, bool)
        names, things = self.names(), (self.dataset_meta or {}).get('thing_classes')
        found: np.ndarray = np.zeros(len(names), bool)
        if things is not None:
            found[numbers(things, self._places(), 'thing_classes')] = True
        elif self.files is not None:
            for id_, place in self.files.classes(self._places()).items():
                if place is not None:
                    found[place] = bool(self.files.categories[id_].get('isthing', 1))
        else:
            raise ValueError(
                "PanopticQuality cannot tell things from stuff: give it vocabulary=, or a data set with 'thing_classes' in its metainfo"
            )
        return found

    def is_seen(self) -> np.ndarray | None:
        """Which classes training saw (K,); None where nothing says so."""
        if self.unseen is None and self.seen_in is None:
            return None
        names = self.names()
        if self.unseen is not None:
            seen: np.ndarray = np.ones(len(names), bool)
            seen[numbers(self.unseen, self._places(), 'unseen')] = False
            return seen
        known = {key(n) for c in Vocabulary.parse(self.seen_in).categories for n in c.names}
        # without things and stuff the order stays
        asked = self.vocabulary or Vocabulary.parse(dict(classes=names))
        return np.array(
            [
                any(key(n) in known for n in (name, *category.names))
                for name, category in zip(names, asked.categories)
            ]
        )

    def compute_metrics(self, results: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        names, things, seen = self.names(), self.is_thing(), self.is_seen()
        total = np.zeros((len(names), 4))
        for used, found in results:
            total[used] += found
        groups = {'': np.full(len(names), True), '_th': things, '_st': ~things}
        if seen is not None:
            groups |= {
                f'{kind}_{what}': chosen & which
                for kind, chosen in list(groups.items())
                for what, which in dict(seen=seen, unseen=~seen).items()
            }
        metrics: dict[str, float] = {}
        for group, chosen in groups.items():
            values = averages(total[chosen])
            if values is not None or not group:
                values = values or dict.fromkeys(('PQ', 'SQ', 'RQ'), float('nan'))
                metrics |= {f'{key}{group}': 100 * value for key, value in values.items()}
        if self.classwise:
            print_log('\n' + table(names, total, things, seen), logger='current')
        return metrics


def table(
    names: Sequence[str], total: np.ndarray, things: np.ndarray, seen: np.ndarray | None
) -> str:
    """The classes that occur, one a line, with their counts."""
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    lines = Table('class', 'kind', 'PQ', 'SQ', 'RQ', 'TP', 'FP', 'FN')
    for place, (pq, sq, rq) in enumerate(per_class(total)):
        counts: np.ndarray = total[place, 1:].astype(int)
        if counts.any():
            kind = 'thing' if things[place] else 'stuff'
            if seen is not None and not seen[place]:
                kind = f'unseen {kind}'
            values = [f'{100 * value:.1f}' for value in (pq, sq, rq)]
            lines.add_row(names[place], kind, *values, *map(str, counts))
    out = StringIO()
    Console(file=out, width=110).print(lines)
    return out.getvalue()

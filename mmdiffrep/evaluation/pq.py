"""Panoptic quality of one image and of many, in numpy. Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4.

Void and crowds as in panopticapi: pixels that are void in the ground truth are no part of a union; a prediction that matches nothing is
no mistake if more than half of it is void or a crowd of its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def image_statistics(
    truth: Mapping[str, Any], prediction: Mapping[str, Any], classes: int, name: str = 'an image'
) -> np.ndarray:
    """What one image adds to each class: (classes, 4): the sum of matched segments' IoU, and how many are right, wrong, missed.

    Args:
        truth, prediction: ``ids`` (H, W) whole numbers, 0 for nothing; ``segments``: ``id``, ``category``, and of the truth
            ``iscrowd``.
        name: in errors.

    Raises:
        ValueError: sizes differ; an id without a segment or category; a predicted segment without pixels.
    """
    true_ids, wanted = _segments(truth, classes, f'{name}, ground truth')
    ids, found = _segments(prediction, classes, f'{name}, prediction')
    if true_ids.shape != ids.shape:
        raise ValueError(
            f'{name}: the prediction has {ids.shape[0]} x {ids.shape[1]} pixels, the ground truth {true_ids.shape[0]} x '
            f'{true_ids.shape[1]}. Resize predictions to the original image (ori_shape), or load annotations without resizing them'
        )
    overlap = _overlaps(
        true_ids, ids, list(wanted), list(found)
    )  # (1 + truths, 1 + found), 0: void
    empty = [id_ for id_, area in zip(found, overlap.sum(0)[1:]) if not area]
    if empty:
        raise ValueError(
            f'{name}: predicted segments {empty[:5]} have no pixels; leave them out of segments'
        )
    result = np.zeros((classes, 4))
    true_class = np.array([segment['category'] for segment in wanted.values()], int)
    found_class = np.array([segment['category'] for segment in found.values()], int)
    crowd = np.array([bool(segment.get('iscrowd', 0)) for segment in wanted.values()], bool)
    inner = overlap[1:, 1:]
    union = overlap[1:].sum(1)[:, None] + overlap[:, 1:].sum(0) - inner - overlap[0, 1:]
    iou = inner / np.maximum(union, 1)
    match = (iou > 0.5) & (true_class[:, None] == found_class) & ~crowd[:, None]
    for row, column in zip(*match.nonzero()):
        result[true_class[row], :2] += iou[row, column], 1
    ignored = overlap[0, 1:].copy()
    # of several crowds of a class in an image, panopticapi regards the last
    crowds = {true_class[row]: row for row in crowd.nonzero()[0]}
    for column, category in enumerate(found_class):
        if category in crowds:
            ignored[column] += inner[crowds[category], column]
    wrong = ~match.any(0) & ~(ignored / overlap[:, 1:].sum(0) > 0.5)
    np.add.at(result[:, 2], found_class[wrong], 1)
    np.add.at(result[:, 3], true_class[~match.any(1) & ~crowd], 1)
    return result


def per_class(total: np.ndarray) -> np.ndarray:
    """Summed statistics (K, 4) -> PQ, SQ, RQ (K, 3), in [0, 1]; zeros for a class that did not occur."""
    iou, right, wrong, missed = total.T
    size = right + (wrong + missed) / 2
    sq = np.divide(iou, right, out=np.zeros(len(total)), where=right > 0)
    rq = np.divide(right, size, out=np.zeros(len(total)), where=size > 0)
    return np.stack([sq * rq, sq, rq], 1)


def averages(total: np.ndarray) -> dict[str, float] | None:
    """PQ, SQ, RQ over the classes that occur; None where none does."""
    occurs = total[:, 1:].sum(1) > 0
    if not occurs.any():
        return None
    return {
        key: float(value)
        for key, value in zip(('PQ', 'SQ', 'RQ'), per_class(total)[occurs].mean(0))
    }


def _segments(
    panoptic: Mapping[str, Any], classes: int, name: str
) -> tuple[np.ndarray, dict[int, Mapping[str, Any]]]:
    """Ids (H, W) and segments by their id, checked."""
    ids = panoptic['ids']
    ids = np.asarray(ids.cpu() if hasattr(ids, 'cpu') else ids)
    if ids.ndim != 2 or ids.dtype.kind not in 'iu':
        raise ValueError(
            f'{name}: ids are {ids.dtype} of shape {ids.shape}; needed: whole numbers (H, W)'
        )
    segments: dict[int, Mapping[str, Any]] = {}
    for segment in panoptic['segments']:
        category = segment.get('category')
        if category is None or not 0 <= category < classes:
            raise ValueError(
                f'{name}: segment {segment.get("id")} has category {category}; needed: the number of its class, 0 to {classes - 1}'
            )
        segments[int(segment['id'])] = segment
    unknown = sorted(set(np.unique(ids).tolist()) - set(segments) - {0})
    if unknown:
        raise ValueError(
            f'{name}: pixels have the ids {unknown[:5]}, which no segment has, so that their category is unknown; segments have '
            f'{sorted(segments)[:5]}…'
        )
    segments.pop(0, None)  # 0 is nothing, whoever says so
    return ids, segments


def _overlaps(a: np.ndarray, b: np.ndarray, a_ids: list[int], b_ids: list[int]) -> np.ndarray:
    """Pixels that ids of two maps share, (1 + A, 1 + B); the first row and column are of 0."""
    places = []
    for ids, known in ((a, a_ids), (b, b_ids)):
        values, inverse = np.unique(ids, return_inverse=True)
        place = {0: 0} | {id_: k + 1 for k, id_ in enumerate(known)}
        places.append(np.array([place[value] for value in values.tolist()])[inverse.ravel()])
    columns = 1 + len(b_ids)
    counts = np.bincount(places[0] * columns + places[1], minlength=(1 + len(a_ids)) * columns)
    return counts.reshape(-1, columns)

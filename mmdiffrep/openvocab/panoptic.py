"""One set of scored masks, three results: panoptic, semantic and instance segmentation, for any number of classes.

Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation (Mask2Former), CVPR 2022, section 3 and its code's
rules; Xu et al., ODISE, CVPR 2023, takes them over. Masks may come at a lower resolution: they are resized in strips of rows, so that
nothing of (queries, height, width) has to exist at the image's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
STRIP = (
    2**20
)  # numbers in a strip of masks: what a processor's cache holds is several times as fast


def merge_panoptic(
    class_log_probs: Tensor,
    mask_logits: Tensor,
    is_thing: Tensor | Sequence[bool],
    object_mask_thr: float = 0.0,
    overlap_thr: float = 0.8,
    size: Size | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Each pixel to one segment or none.

    Masks whose best class is void, or scores no more than ``object_mask_thr``, are left out. A pixel is owned by the mask with the
    highest score times mask probability. A mask that owns less than ``overlap_thr`` of its own area (where its probability is at least
    0.5) is dropped, and leaves its pixels empty; of the others, pixels count that they own and whose probability is at least 0.5.
    Stuff segments of a class become one, scored as its best.

    Args:
        class_log_probs: (Q, K + 1), void last.
        mask_logits: (Q, h, w).
        is_thing: (K,), in any order.
        size: (height, width) of the result, if not the masks' own; logits are resized bilinearly.

    Returns:
        Ids (H, W), int32: 0 for nothing, a segment's id elsewhere. Segments in the order of their ids 1, 2, …: ``id``, ``category``
        (0 to K - 1), ``isthing``, ``score``, ``area`` (pixels), ``bbox`` ([x, y, width, height] in pixels, as COCO's).

    Raises:
        ValueError: shapes do not fit.
    """
    things = _check(class_log_probs, mask_logits, is_thing)
    size = size or (mask_logits.shape[-2], mask_logits.shape[-1])
    scores, labels = class_log_probs.float().exp().max(-1)
    kept = ((labels < len(things)) & (scores > object_mask_thr)).nonzero().flatten()
    ids = torch.zeros(size, dtype=torch.int32, device=mask_logits.device)
    if not len(kept):
        return ids, []
    owner, inside, own_areas = _owners(mask_logits[kept], scores[kept], size)
    owned = torch.bincount(owner.flatten(), minlength=len(kept))
    left = torch.bincount(owner[inside], minlength=len(kept))
    # a mask that reaches 0.5 nowhere has no area of its own, and left is 0 as well
    stays = (left > 0) & (owned / own_areas.clamp(min=1) >= overlap_thr)
    number, segments = _segments(
        stays.tolist(), labels[kept].tolist(), scores[kept].tolist(), things
    )
    ids = number.to(ids)[owner] * inside
    areas = torch.bincount(ids.flatten(), minlength=len(segments) + 1).tolist()
    boxes = _id_boxes(ids, len(segments))
    for segment in segments:
        segment.update(area=areas[segment['id']], bbox=boxes[segment['id'] - 1])
    return ids, segments


def _owners(mask_logits: Tensor, scores: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Who owns each pixel (H, W), whether its probability there is at least 0.5 (H, W), and each mask's own area (Q,)."""
    owner = torch.empty(size, dtype=torch.int64, device=mask_logits.device)
    inside = torch.empty(size, dtype=torch.bool, device=mask_logits.device)
    areas = torch.zeros(len(scores), dtype=torch.int64, device=mask_logits.device)
    for start, stop, masks in strips(mask_logits, size):
        best = _first_best(masks * scores[:, None, None])
        owner[start:stop] = best
        inside[start:stop] = masks.gather(0, best[None])[0] >= 0.5
        areas += _count(torch.ge(masks, 0.5, out=torch.empty_like(masks)))
    return owner, inside, areas


def _segments(
    stays: list[bool], labels: list[int], scores: list[float], things: list[bool]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The id of each mask's segment (Q,), 0 for none, and the segments."""
    number = torch.zeros(len(stays), dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    stuff: dict[int, dict[str, Any]] = {}
    for mask, (stay, label, score) in enumerate(zip(stays, labels, scores)):
        if not stay:
            continue
        segment = stuff.get(label)
        if segment is None:
            segment = dict(id=len(segments) + 1, category=label, isthing=things[label], score=score)
            segments.append(segment)
            if not things[label]:
                stuff[label] = segment
        segment['score'] = max(segment['score'], score)
        number[mask] = segment['id']
    return number, segments


def semantic_scores(
    class_log_probs: Tensor, mask_logits: Tensor, size: Size | None = None
) -> Tensor:
    """Sum over queries of class times mask probability: (K, H, W), fp32. With many classes :func:`semantic_labels` holds less."""
    _check(class_log_probs, mask_logits)
    size = size or (mask_logits.shape[-2], mask_logits.shape[-1])
    probabilities = class_log_probs[:, :-1].float().exp()
    result = probabilities.new_empty(probabilities.shape[1], *size)
    for start, stop, masks in strips(mask_logits, size):
        result[:, start:stop] = torch.einsum('qk,qhw->khw', probabilities, masks)
    return result


def semantic_labels(
    class_log_probs: Tensor, mask_logits: Tensor, size: Size | None = None
) -> Tensor:
    """The class with the highest of :func:`semantic_scores` at each pixel: (H, W), int64."""
    _check(class_log_probs, mask_logits)
    size = size or (mask_logits.shape[-2], mask_logits.shape[-1])
    probabilities = class_log_probs[:, :-1].float().exp()
    result = torch.empty(size, dtype=torch.int64, device=mask_logits.device)
    for start, stop, masks in strips(mask_logits, size, max(probabilities.shape)):
        result[start:stop] = _first_best(torch.einsum('qk,qhw->khw', probabilities, masks))
    return result


def instances(
    class_log_probs: Tensor,
    mask_logits: Tensor,
    is_thing: Tensor | Sequence[bool],
    top: int = 100,
    size: Size | None = None,
) -> dict[str, Tensor]:
    """The ``top`` best pairs of a mask and a thing class. One mask can have several classes.

    A pair's score is its class probability times the mask's mean probability where that exceeds 0.5.

    Returns:
        ``scores`` (N,), descending in the class probability; ``labels`` (N,), 0 to K - 1; ``masks`` (N, H, W), bool; ``bboxes``
        (N, 4), x1, y1, x2, y2 in pixels, zeros for an empty mask; ``queries`` (N,).
    """
    things = _check(class_log_probs, mask_logits, is_thing)
    size = size or (mask_logits.shape[-2], mask_logits.shape[-1])
    which = torch.tensor(things, device=class_log_probs.device).nonzero().flatten()
    scores = class_log_probs[:, which].float().exp()
    scores, best = scores.flatten().topk(min(top, scores.numel()))
    queries, labels = best // max(len(which), 1), which[best % max(len(which), 1)]
    used, of_used = queries.unique(return_inverse=True)
    masks = torch.empty(len(used), *size, dtype=torch.bool, device=mask_logits.device)
    total, count = (torch.zeros(len(used), device=mask_logits.device) for _ in range(2))
    if len(used):
        for start, stop, strip in strips(mask_logits[used], size):
            inside = torch.gt(strip, 0.5, out=torch.empty_like(strip))
            masks[:, start:stop] = inside
            total += (strip * inside).sum((1, 2))
            count += _count(inside)
    quality = total / (count + 1e-6)
    return dict(
        scores=scores * quality[of_used],
        labels=labels,
        masks=masks[of_used],
        bboxes=mask_boxes(masks)[of_used],
        queries=queries,
    )


def strips(
    mask_logits: Tensor, size: Size, numbers: int | None = None
) -> Iterator[tuple[int, int, Tensor]]:
    """Mask probabilities at a size, a strip of rows at a time: first row, the row behind the last, (Q, rows, W) fp32.

    The same as bilinear ``F.interpolate`` (``align_corners=False``) of the logits, then sigmoid.

    Args:
        numbers: that are held for each pixel, if more than Q.
    """
    (height, width), old = size, mask_logits.shape[-2]
    rows = max(1, STRIP // max(1, width * max(len(mask_logits), numbers or 0)))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        if (old, mask_logits.shape[-1]) == (height, width):
            yield start, stop, mask_logits[:, start:stop].float().sigmoid()
            continue
        y = torch.arange(start, stop, dtype=torch.float64)
        y = ((y + 0.5) * (old / height) - 0.5).clamp(0, old - 1)
        low = y.long().to(mask_logits.device)
        share = y.frac().to(mask_logits)[:, None].float()
        strip = mask_logits[:, low].float() * (1 - share)
        strip += mask_logits[:, (low + 1).clamp(max=old - 1)].float() * share
        strip = F.interpolate(strip[None], (stop - start, width), mode='bilinear')[0]
        yield start, stop, strip.sigmoid()


def _count(masks: Tensor) -> Tensor:
    """Pixels of each mask of a strip (Q, rows, W), which are zeros and ones in fp32: exact, and faster to add than booleans."""
    return masks.sum((1, 2)).long()


def _first_best(values: Tensor) -> Tensor:
    """``values.argmax(0)`` of (N, rows, W), the first where several are best. Several times as fast on a CPU."""
    countdown = torch.arange(len(values), 0, -1, device=values.device, dtype=values.dtype)
    best = torch.eq(values, values.amax(0), out=torch.empty_like(values))
    return len(values) - (best * countdown[:, None, None]).amax(0).long()


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) around masks (N, H, W), bool: x1, y1, x2, y2, the last pixel's right and lower edge; zeros where empty."""
    boxes = masks.new_zeros((len(masks), 4), dtype=torch.float32)
    for axis, lines in enumerate((masks.any(1), masks.any(2))):  # columns: x, rows: y
        length = lines.shape[1]
        if len(masks):
            boxes[:, axis] = lines.int().argmax(1).float()
            boxes[:, axis + 2] = length - lines.flip(1).int().argmax(1).float()
    return boxes * masks.flatten(1).any(1)[:, None]


def _id_boxes(ids: Tensor, count: int) -> list[list[int]]:
    """Boxes [x, y, width, height] of the ids 1 to ``count``, each of which occurs."""
    y, x = ids.nonzero(as_tuple=True)
    index = ids[y, x].long() - 1
    ends = []
    for values in (x, y):
        for way in ('amin', 'amax'):
            end = torch.zeros(count, dtype=torch.int64, device=ids.device)
            ends.append(end.scatter_reduce(0, index, values, way, include_self=False).tolist())
    return [[x0, y0, x1 - x0 + 1, y1 - y0 + 1] for x0, x1, y0, y1 in zip(*ends)]


def _check(
    class_log_probs: Tensor, mask_logits: Tensor, is_thing: Tensor | Sequence[bool] | None = None
) -> list[bool]:
    """Which classes are things, as a list. ValueError unless all shapes fit."""
    if class_log_probs.dim() != 2 or mask_logits.dim() != 3 or class_log_probs.shape[1] < 2:
        raise ValueError(
            f'class_log_probs {tuple(class_log_probs.shape)} and mask_logits {tuple(mask_logits.shape)} do not fit; needed: '
            '(Q, K + 1), void last, and (Q, H, W), of one image'
        )
    if len(class_log_probs) != len(mask_logits) or 0 in mask_logits.shape[1:]:
        raise ValueError(
            f'{len(class_log_probs)} classified masks and {len(mask_logits)} masks of {tuple(mask_logits.shape[1:])}; needed: as many '
            'of one as of the other, and pixels'
        )
    things = [] if is_thing is None else torch.as_tensor(is_thing).bool().tolist()
    classes = class_log_probs.shape[1] - 1
    if is_thing is not None and len(things) != classes:
        raise ValueError(
            f'is_thing has {len(things)} entries for {classes} classes (and void); needed: one a class'
        )
    return things

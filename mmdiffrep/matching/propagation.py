"""Labels carried over a video's frames by their features (DAVIS; Jabri et al. 2020, Caron et al. 2021, as DIFT uses them)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Propagation:
    """Soft labels of the first frame, carried to one frame after the other.

    A cell's label is the weighted mean of the labels of its ``topk`` most alike cells among the first frame and the last ``frames``
    ones, no farther than ``radius`` cells away in both directions; weights are softmax(cosine / temperature).

    Args:
        frames: context besides the first frame. DIFT: 28.
        radius: in cells. DIFT: 15.
        topk: DIFT: 15 with SD, 10 with ADM.
        temperature: DIFT: 0.2 with SD, 0.1 with ADM.
    """

    def __init__(self, frames: int = 28, radius: int = 15, topk: int = 15, temperature: float = 0.2) -> None:
        if min(frames, topk) < 1 or radius < 0 or temperature <= 0:
            raise ValueError(
                f'frames={frames}, radius={radius}, topk={topk}, temperature={temperature} do not fit; allowed: frames and topk from 1, '
                'radius from 0, temperature above 0'
            )
        self.frames, self.radius, self.topk, self.temperature = frames, radius, topk, temperature
        self.first: tuple[Tensor, Tensor] | None = None
        self.queue: deque[tuple[Tensor, Tensor]] = deque(maxlen=frames)

    def start(self, features: Tensor, labels: Tensor) -> None:
        """The first frame's map (C, h, w) and its soft labels (K, h, w)."""
        if features.shape[1:] != labels.shape[1:]:
            raise ValueError(
                f'a map {tuple(features.shape)} and labels {tuple(labels.shape)} do not fit; allowed: (C, h, w) and (K, h, w)'
            )
        self.first, self.queue = (F.normalize(features.float(), dim=0), labels.float()), deque(maxlen=self.frames)

    def step(self, features: Tensor) -> Tensor:
        """The next frame's map (C, h, w) -> its soft labels (K, h, w)."""
        if self.first is None:
            raise ValueError('no first frame: call start() with its features and labels')
        current = F.normalize(features.float(), dim=0)
        context = [self.first, *self.queue]
        _, h, w = current.shape
        queries = current.flatten(1).t()
        best_scores, best_labels = None, None
        for keys, labels in context:  # one frame at once: the memory of all of them is never taken
            scores = queries @ keys.flatten(1)
            scores = scores.masked_fill(~self._near(h, w, scores.device), -torch.inf)
            count = min(self.topk, scores.shape[1])
            top = scores.topk(count, dim=1)
            found = labels.flatten(1).t()[top.indices]  # (h·w, count, K)
            if best_scores is None:
                best_scores, best_labels = top.values, found
            else:
                joined, taken = torch.cat([best_scores, top.values], 1), torch.cat([best_labels, found], 1)
                kept = joined.topk(min(self.topk, joined.shape[1]), dim=1)
                best_scores = kept.values
                best_labels = taken.gather(1, kept.indices[..., None].expand(-1, -1, taken.shape[2]))
        assert best_scores is not None and best_labels is not None
        weights = (best_scores / self.temperature).softmax(1)
        result = (weights[..., None] * best_labels).sum(1).t().reshape(-1, h, w)
        self.queue.append((current, result))
        return result

    def _near(self, h: int, w: int, device: torch.device) -> Tensor:
        """(h·w, h·w): whether two cells are no farther apart than the radius."""
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing='ij')
        y, x = y.flatten(), x.flatten()
        return ((y[:, None] - y[None]).abs() <= self.radius) & ((x[:, None] - x[None]).abs() <= self.radius)


@torch.no_grad()
def follow(
    features: Callable[[Tensor], Tensor], frames: Iterable[Tensor], first: np.ndarray, state: Propagation
) -> Iterator[np.ndarray]:
    """The first frame's objects in every frame.

    Labels are carried at the features' own resolution, resized bilinearly to the frame, each object's stretched to 0 … 1, and the
    largest is taken.

    Args:
        features: a frame's map (C, h, w).
        frames: (3, H, W) each, read one after the other.
        first: objects (H, W) of the first frame, 0 … K; 0 is none.
        state: how labels are carried.

    Yields:
        Objects (H, W) uint8, frame after frame; the first as given.

    Raises:
        ValueError: a mask of another size than the first frame's, or that shows no object.
    """
    for number, frame in enumerate(frames):
        size = (frame.shape[-2], frame.shape[-1])
        if not number and (first.shape != size or not first.any()):
            raise ValueError(
                f'the first mask is {first.shape} with objects {np.unique(first).tolist()}, the first frame {size}: it must have its size, '
                'and objects numbered from 1'
            )
        m = features(frame)
        if not number:
            labels = F.one_hot(torch.from_numpy(first.astype(np.int64)), int(first.max()) + 1)
            # the share of each object in a cell
            shares = F.adaptive_avg_pool2d(labels.permute(2, 0, 1).float(), m.shape[-2:])
            state.start(m, shares.to(m.device))
            yield first.astype(np.uint8)
        else:
            yield _objects(state.step(m), size)


def _objects(soft: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Soft labels (K, h, w) -> object numbers (H, W) of the frame."""
    large = F.interpolate(soft[None], size, mode='bilinear', align_corners=False)[0].flatten(1)
    low, high = large.min(1, keepdim=True).values, large.max(1, keepdim=True).values
    # an object that has shrunk still reaches 1 somewhere; one that has gone stays at 0
    stretched = torch.where(high > 0, (large - low) / (high - low).clamp(min=1e-12), large)
    return stretched.argmax(0).view(size).cpu().numpy().astype(np.uint8)

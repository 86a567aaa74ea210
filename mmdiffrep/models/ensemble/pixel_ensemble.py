"""PixelEnsemble: DDPM-Seg's pixel classifiers as a decode head.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models", ICLR 2022, https://arxiv.org/abs/2112.03126 (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from mmdiffrep.diffusion.pixel_sampling import neighbours
from mmdiffrep.diffusion.seeding import run_seed
from mmdiffrep.registry import MODELS

from .batched_mlp import MLPEnsemble
from .stopping import Stopping
from .voting import jensen_shannon, vote_shares

LEAST_PIXELS = 2  # of a batch: BatchNorm1d needs a spread


@dataclass
class Said:
    """What an ensemble says of an image: shares of votes (C, H, W), labels and uncertainty (H, W)."""

    shares: Tensor
    labels: Tensor
    uncertainty: Tensor


@MODELS.register_module()
class PixelEnsemble(BaseDecodeHead):
    """M independent MLPs classify pixels by the features of all maps, each resized bilinearly to the image; they vote.

    Training takes features of sampled pixels (:meth:`loss`; ``EnsembleSegmentor`` brings them). At test time the first layer is applied
    to the maps at their native sizes and its M·h results are resized, a few rows of the image at once, never the features.

    Args:
        in_channels: of each map.
        num_classes: classes.
        members: M.
        hidden: widths of the MLPs' hidden layers; None: the paper's, (128, 32) below 30 classes, (256, 128) from 30 on.
        seed: member m's weights are drawn from a stream seeded by 1000 seed + m; None: the run's seed.
        stop_begin, patience: from this epoch on (counted from 1) a member stops after more than ``patience`` batches without a new best
            loss; ``patience=None``: never.
        pixels_at_once: pixels of an image that are classified at once: bounds the memory.
        ignore_index: label of pixels that are not labelled.

    Raises:
        ValueError: sizes that do not fit; labels outside the classes.
    """

    def __init__(
        self,
        in_channels: Sequence[int] | int,
        num_classes: int,
        members: int = 10,
        hidden: Sequence[int] | None = None,
        seed: int | None = None,
        stop_begin: int = 5,
        patience: int | None = 50,
        pixels_at_once: int = 2048,
        ignore_index: int = 255,
        **kwargs: Any,
    ) -> None:
        channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        hidden = (
            list(hidden) if hidden is not None else ([128, 32] if num_classes < 30 else [256, 128])
        )
        if (
            min([members, pixels_at_once, *channels, *hidden], default=0) < 1
            or not hidden
            or num_classes < 2
        ):
            raise ValueError(
                f'in_channels={channels}, hidden={hidden}, members={members}, pixels_at_once={pixels_at_once}, num_classes={num_classes} '
                'do not fit; allowed: whole numbers from 1, at least one hidden layer, two classes'
            )
        kwargs.setdefault('threshold', 0.5)  # mmseg's advice for two classes is of no use here
        super().__init__(
            channels, hidden[0], num_classes=num_classes, out_channels=num_classes, dropout_ratio=0,
            in_index=list(range(len(channels))), input_transform='multiple_select', ignore_index=ignore_index,
            align_corners=False, loss_decode=[], init_cfg=None, **kwargs,
        )  # fmt: skip
        del self.conv_seg, self.loss_decode  # the ensemble has its own
        self.members, self.pixels_at_once = members, pixels_at_once
        self.mlps = MLPEnsemble(channels, hidden, num_classes, members, run_seed() if seed is None else seed)
        self.stopping = Stopping(members, stop_begin, patience)

    def init_weights(self) -> None:
        """The same weights again: they come from ``seed`` alone."""
        self.mlps.reset()

    def loss(self, features: Tensor, labels: Tensor, *_: Any) -> dict[str, Tensor]:
        """Cross entropy of sampled pixels.

        Args:
            features: (M, n, ΣC_k): each member's own pixels.
            labels: (M, n).

        Returns:
            ``loss_ce``: the sum of the learning members' mean losses, so that each gets the gradient it would get alone;
            ``ce`` (M,) is each member's own and no part of what is minimised; ``acc_seg``: the mean accuracy in percent;
            ``learning``: how many members still learn.
        """
        if (
            not isinstance(labels, Tensor)
            or features.shape[:2] != labels.shape
            or len(labels) != self.members
        ):
            raise ValueError(
                f'PixelEnsemble learns from sampled pixels: features (M, n, channels) and labels (M, n) of M = {self.members} members; '
                'train it in mmdiffrep.EnsembleSegmentor on mmdiffrep.LabelledPixels'
            )
        if labels.shape[1] < LEAST_PIXELS:
            raise ValueError(
                f'a batch of {labels.shape[1]} pixel(s) was given; batch normalisation needs at least {LEAST_PIXELS}'
            )
        learning = self.stopping.learning
        logits = self.mlps(features, learning)
        ce = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=self.ignore_index, reduction='none'
        ).view(labels.shape)
        counted = labels != self.ignore_index
        own = ce.sum(1) / counted.sum(1).clamp(min=1)
        hits = (logits.detach().argmax(-1) == labels) & counted
        return dict(
            loss_ce=own[learning].sum(),
            ce=own.detach(),
            acc_seg=100 * hits.sum() / counted.sum().clamp(min=1),
            learning=learning.sum().float(),
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_k, h_k, w_k) -> shares of votes (B, C, h, w) at the largest map's size."""
        size = max((tuple(m.shape[-2:]) for m in inputs), key=lambda s: s[0] * s[1])
        return torch.stack(
            [
                self.say([m[b] for m in inputs], size, (0, 0, *size), size).shares
                for b in range(len(inputs[0]))
            ]
        )

    @torch.no_grad()
    def say(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        box: tuple[int, int, int, int],
        out: tuple[int, int],
    ) -> Said:
        """What the ensemble says of one image.

        Args:
            maps: (C_k, h_k, w_k) each, covering all of the network's input.
            size: (H, W) of the network's input.
            box: top, left, height, width of the image in it; the rest is padding.
            out: (H', W') in which the answer is given; the image's pixels lie in the box.
        """
        if len(maps) != len(self.in_channels) or any(
            m.shape[0] != c for m, c in zip(maps, self.in_channels)
        ):
            raise ValueError(
                f'maps of {[m.shape[0] for m in maps]} channels were given; the head was built for {list(self.in_channels)}'
            )
        top, left, height, width = box
        z = self.mlps.first_layer(maps)
        device = maps[0].device
        # pixel centres of the answer, in the input's pixels
        y = (
            top
            - 0.5
            + (torch.arange(out[0], dtype=torch.float64, device=device) + 0.5) * (height / out[0])
        )
        x = (
            left
            - 0.5
            + (torch.arange(out[1], dtype=torch.float64, device=device) + 0.5) * (width / out[1])
        )
        table = torch.cat(list(z.values()))
        rows = max(1, self.pixels_at_once // out[1])
        found = [self._rows(table, list(z), part, x, size) for part in y.split(rows)]
        shares, labels, uncertainty = (torch.cat(parts, dim=-2) for parts in zip(*found))
        return Said(shares, labels, uncertainty)

    def _rows(
        self,
        table: Tensor,
        sizes: Sequence[tuple[int, int]],
        y: Tensor,
        x: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the answer: each pixel is a weighted sum of four rows of ``table`` for each of its maps' sizes, taken in one pass."""
        cells, weights, begin = [], [], 0
        for rows, columns in sizes:
            above, below, down = neighbours(y, rows, size[0])
            before, behind, across = neighbours(x, columns, size[1])
            for row, vertical in ((above, 1 - down), (below, down)):
                for column, horizontal in ((before, 1 - across), (behind, across)):
                    cells.append(begin + row[:, None] * columns + column)
                    weights.append(vertical[:, None] * horizontal)
            begin += rows * columns
        shape = cells[0].shape  # (rows, W)
        total = F.embedding_bag(
            torch.stack(cells, -1).flatten(0, 1),
            table,
            per_sample_weights=torch.stack(weights, -1).flatten(0, 1).to(table.dtype),
            mode='sum',
        )  # (n, M·h)
        features = total.unflatten(1, (self.members, -1)).transpose(0, 1)  # (M, n, h)
        logits = self.mlps.rest(features + self.mlps.biases[0][:, None])
        shares = vote_shares(logits).t().reshape(self.num_classes, *shape)
        return shares, shares.argmax(0), jensen_shannon(logits).view(shape)

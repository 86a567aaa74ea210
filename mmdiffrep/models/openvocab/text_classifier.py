"""TextClassifier: embeddings of masks against those of words, with a learned embedding of nothing.

ODISE (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803, section 3.4).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiffrep.openvocab.text_bank import TextBank

MAX_SCALE = 100.0


class TextClassifier(nn.Module):
    """Logits min(exp τ, 100) · cos(e, W t): a class's is the highest of its synonyms'; the last is void's.

    Args:
        text_channels: of the text embeddings.
        embed_channels: of the masks' embeddings.
    """

    def __init__(self, text_channels: int, embed_channels: int) -> None:
        super().__init__()
        self.text_channels = text_channels
        self.project = nn.Linear(text_channels, embed_channels)
        self.void = nn.Parameter(torch.randn(text_channels) / text_channels**0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def forward(self, embeddings: Tensor, bank: TextBank) -> Tensor:
        """Embeddings (..., C) of masks -> logits (..., K + 1) over the bank's classes and void, fp32.

        Raises:
            ValueError: the bank's embeddings have another width.
        """
        if bank.embeddings.shape[1] != self.text_channels:
            raise ValueError(
                f'text embeddings of width {bank.embeddings.shape[1]} were given to a head of text_channels={self.text_channels}: '
                'give the text encoder that it was made for'
            )
        cosines = self.cosines(
            embeddings, torch.cat([bank.embeddings.to(self.void.device), self.void[None]])
        )
        classes = bank.class_scores(cosines[..., :-1])
        return self.scale * torch.cat([classes, cosines[..., -1:]], -1)

    def cosines(self, embeddings: Tensor, texts: Tensor) -> Tensor:
        """Embeddings (..., C) and text embeddings (S, D) -> cosines (..., S), fp32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            words = F.normalize(self.project(texts.float()), dim=-1)
            return F.normalize(embeddings.float(), dim=-1) @ words.T

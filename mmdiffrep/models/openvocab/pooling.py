"""MaskPooledEmbedding: what a predicted mask shows, as one vector to compare with words.

ODISE (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803, section 3.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskPooledEmbedding(nn.Module):
    """MLP(LN(W LN(v) + b + q)), v the mean of the features inside the mask, q the mask's query.

    Args:
        in_channels: of the features.
        query_channels: of the queries, and inside.
        out_channels: of the embedding.
    """

    def __init__(self, in_channels: int, query_channels: int, out_channels: int) -> None:
        super().__init__()
        self.feature_norm = nn.LayerNorm(in_channels)
        self.project = nn.Linear(in_channels, query_channels)
        self.norm = nn.LayerNorm(query_channels)
        self.mlp = nn.Sequential(
            nn.Linear(query_channels, query_channels), nn.ReLU(inplace=True),
            nn.Linear(query_channels, query_channels), nn.ReLU(inplace=True),
            nn.Linear(query_channels, out_channels),
        )  # fmt: skip

    def forward(self, features: Tensor, mask_logits: Tensor, queries: Tensor) -> Tensor:
        """Features (B, C, h, w), mask logits (B, Q, h, w), queries (B, Q, C_q) -> embeddings (B, Q, C_out), not normalised.

        The masks are cut at a probability of 0.5; no gradient passes through them. An empty mask pools to zeros.
        """
        pooled = pool_inside(features, mask_logits)
        return self.mlp(self.norm(self.project(self.feature_norm(pooled)) + queries))


def pool_inside(features: Tensor, mask_logits: Tensor) -> Tensor:
    """Mean of features (B, C, h, w) where the mask logits (B, Q, h, w) are above 0 -> (B, Q, C)."""
    inside = (mask_logits.detach() > 0).to(features.dtype)
    # sums over many pixels: in single precision whatever the surroundings
    with torch.autocast(features.device.type, enabled=False):
        total = torch.einsum('bqhw,bchw->bqc', inside.float(), features.float())
        area = inside.float().sum((2, 3)).unsqueeze(-1)
        return (total / (area + 1e-8)).to(features.dtype)

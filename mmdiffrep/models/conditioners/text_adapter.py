"""TextAdapter: a learned shift of the text tokens.

VPD (Zhao et al., ICCV 2023, https://arxiv.org/abs/2303.02153, section 3.2).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.diffusion.denoiser import Condition
from mmdiffrep.registry import MODELS


@MODELS.register_module()
class TextAdapter(BaseModule):
    """tokens + gamma ⊙ MLP(tokens): two linear layers with a GELU between them, gamma a learned vector.

    Args:
        token_channels: width of the tokens. DiffusionBackbone fills it in.
        time_channels, token_count: not used; what DiffusionBackbone says to every conditioner.
        gamma: what every entry of the learned vector begins with. At 0 the tokens stay as they are.
    """

    def __init__(
        self,
        token_channels: int,
        time_channels: int | None = None,
        gamma: float = 1e-4,
        token_count: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.mlp = nn.Sequential(
            nn.Linear(token_channels, token_channels),
            nn.GELU(),
            nn.Linear(token_channels, token_channels),
        )
        self.gamma = nn.Parameter(torch.full((token_channels,), float(gamma)))

    def forward(self, rgb: Tensor, condition: Condition | None) -> Condition:
        """The condition with its tokens (B or 1, L, D) adapted; the images (B, 3, H, W) are not looked at.

        Raises:
            ValueError: there are no tokens.
        """
        if condition is None or condition.tokens is None:
            raise ValueError(
                'TextAdapter got a condition without text tokens: it belongs to a network that is told a text '
                '(mmdiffrep.StableDiffusion)'
            )
        tokens = condition.tokens
        return replace(condition, tokens=tokens + self.gamma * self.mlp(tokens))

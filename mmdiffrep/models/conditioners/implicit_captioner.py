"""ImplicitCaptioner: what a frozen CLIP sees in the image, told to the network in place of a caption.

ODISE (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.diffusion.denoiser import Condition
from mmdiffrep.openvocab.image_tower import load_image_tower
from mmdiffrep.registry import MODELS

from ..frozen import FrozenHolder


@MODELS.register_module()
class ImplicitCaptioner(BaseModule):
    """tokens + tanh(a) ⊙ (W1 p + pos) and the time embedding + tanh(a_t) ⊙ (W2 p + pos2), p = CLIP's image embedding.

    p is not normalised. Both gates begin at 0, so that at first the network is told what it is told without the captioner.
    CLIP is frozen and in no checkpoint; a checkpoint names it by a digest.

    Args:
        token_channels, time_channels, token_count: D and width of the time embedding, and L. DiffusionBackbone fills them in.
        clip: arguments of :func:`~mmdiffrep.openvocab.image_tower.load_image_tower`, e.g.
            ``dict(name='ViT-L-14-336', pretrained='openai')``, ``dict(kind='transformers', name=FOLDER)``.
        with_time: change the time embedding too.

    Raises:
        ValueError: ``with_time`` and a network whose time embedding cannot be changed; see ``load_image_tower``.
    """

    def __init__(
        self,
        token_channels: int,
        time_channels: int | None = None,
        token_count: int = 77,
        clip: Mapping[str, Any] | None = None,
        with_time: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if with_time and time_channels is None:
            raise ValueError(
                'ImplicitCaptioner: with_time=True, and time_channels is None: the network says no width of its time embedding. '
                'Set with_time=False'
            )
        tower = load_image_tower(**(clip or dict(name='mmdiffrep/toy-clip')))
        self.clip = FrozenHolder(tower, tower.fingerprint, 'CLIP')
        # pos is its bias
        self.to_tokens = nn.Linear(tower.width, token_channels, bias=False)  # W1
        self.token_pos = nn.Parameter(torch.empty(1, token_count, token_channels))
        self.token_gate = nn.Parameter(torch.zeros(1, token_count, token_channels))  # a
        nn.init.trunc_normal_(self.token_pos, std=0.02)
        self.with_time = with_time
        if with_time:
            assert time_channels is not None
            self.to_time = nn.Linear(tower.width, time_channels, bias=False)  # W2
            self.time_pos = nn.Parameter(torch.empty(1, time_channels))
            self.time_gate = nn.Parameter(torch.zeros(1, time_channels))  # a_t
            nn.init.trunc_normal_(self.time_pos, std=0.02)

    def forward(self, rgb: Tensor, condition: Condition | None) -> Condition:
        """The condition with its tokens (B or 1, L, D) and time bias changed by images (B, 3, H, W) in [-1, 1].

        Under ``DiffusionBackbone(windows=…)`` an image is a window, resized as the network sees it: CLIP looks at each alone.

        Raises:
            ValueError: there are no tokens, or another number of them.
        """
        tokens = condition.tokens if condition is not None else None
        if condition is None or tokens is None:
            raise ValueError(
                'ImplicitCaptioner got a condition without text tokens: it belongs to a network that is told a text '
                '(mmdiffrep.StableDiffusion)'
            )
        if tokens.shape[1] != self.token_pos.shape[1]:
            raise ValueError(
                f'tokens of shape {tuple(tokens.shape)} were given; allowed: {self.token_pos.shape[1]} tokens, as many as the fixed '
                'text has. With class_names the prompts of single images have another number: leave one of the two out'
            )
        p = self.clip.frozen(rgb).to(self.token_pos.dtype)
        shift = self.to_tokens(p)[:, None] + self.token_pos  # (B, L, D)
        told = replace(condition, tokens=tokens + self.token_gate.tanh() * shift)
        if self.with_time:
            bias = self.time_gate.tanh() * (self.to_time(p) + self.time_pos)  # (B, D_t)
            told.time_bias = bias if told.time_bias is None else told.time_bias + bias
        return told

"""MLPEnsemble: M independent MLPs in one batched product.

The pixel classifiers of DDPM-Seg (Baranchuk et al., ICLR 2022): Linear, ReLU, BatchNorm1d a hidden layer, then Linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOMENTUM, EPS = 0.1, 1e-5  # BatchNorm1d's own
APART = 1000  # so that ensembles of seeds 0, 1, 2 share no member


class MLPEnsemble(nn.Module):
    """M MLPs side by side; each is what ``nn.Sequential(Linear, ReLU, BatchNorm1d, …, Linear)`` would be.

    Weights are (M, in, out). Those of the first layer are kept for each map by itself, so that the layer can be applied to maps
    of any size (it is linear, and so commutes with bilinear resizing), and so that no gradient is so large that the allocator
    asks the system for new pages at every step.

    Args:
        in_channels: channels of each map; their sum is a pixel's number of features.
        hidden: widths of the hidden layers.
        num_classes: outputs.
        members: M.
        seed: member m is drawn from a stream of its own, seeded by 1000 seed + m: weights N(0, 0.02), biases 0.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        hidden: Sequence[int],
        num_classes: int,
        members: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels, self.members, self.seed = list(in_channels), members, seed
        self.widths = [sum(in_channels), *hidden, num_classes]
        pairs = list(zip(self.widths, self.widths[1:]))

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(members, *shape))

        self.first = nn.ParameterList([parameter(c, self.widths[1]) for c in in_channels])
        self.weights = nn.ParameterList([parameter(a, b) for a, b in pairs[1:]])
        self.biases = nn.ParameterList([parameter(b) for _, b in pairs])
        self.norm_weights = nn.ParameterList([parameter(h) for h in hidden])
        self.norm_biases = nn.ParameterList([parameter(h) for h in hidden])
        for i, h in enumerate(hidden):
            self.register_buffer(f'running_mean_{i}', torch.empty(members, h))
            self.register_buffer(f'running_var_{i}', torch.empty(members, h))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Initial weights. Each layer is drawn as (out, in), as nn.Linear has it."""
        for m in range(self.members):
            draws = torch.Generator('cpu').manual_seed(APART * self.seed + m)
            for i, (a, b) in enumerate(zip(self.widths, self.widths[1:])):
                drawn = torch.empty(b, a, device='cpu').normal_(0, 0.02, generator=draws).t()
                parts = (
                    zip(self.first, drawn.split(self.in_channels))
                    if i == 0
                    else [(self.weights[i - 1], drawn)]
                )
                for weight, part in parts:
                    weight[m].copy_(part)
        for bias in [*self.biases, *self.norm_biases]:
            bias.zero_()
        for weight in self.norm_weights:
            weight.fill_(1)
        for i in range(len(self.norm_weights)):
            self.get_buffer(f'running_mean_{i}').zero_()
            self.get_buffer(f'running_var_{i}').fill_(1)

    def forward(self, x: Tensor, learning: Tensor | None = None) -> Tensor:
        """Features (M, n, ΣC_k), each member's own -> logits (M, n, num_classes).

        In training mode statistics are those of the n pixels, and running ones follow, of the members in ``learning`` (M,) only.
        """
        z = self.biases[0][:, None]
        for weight, part in zip(self.first, x.split(self.in_channels, dim=2)):
            z = torch.baddbmm(z, part, weight)
        return self.rest(z, learning)

    def rest(self, z: Tensor, learning: Tensor | None = None) -> Tensor:
        """What the first layer gave, (M, n, h) -> logits (M, n, num_classes)."""
        for i, weight in enumerate(self.weights):
            z = self._normalised(i, z.relu(), learning)
            z = torch.baddbmm(self.biases[i + 1][:, None], z, weight)
        return z

    def first_layer(self, maps: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
        """The first layer at the maps' native sizes: maps (C_k, h_k, w_k) -> size: (h_k·w_k, M·h), without the bias.

        Maps of one size are added up: resizing is linear.
        """
        found: dict[tuple[int, int], Tensor] = {}
        for weight, m in zip(self.first, maps):
            size = (m.shape[-2], m.shape[-1])
            columns = weight.transpose(0, 1).flatten(1)  # (C_k, M·h)
            flat = m.to(columns.dtype).flatten(1).t()
            found[size] = torch.addmm(found[size], flat, columns) if size in found else flat @ columns
        return found

    def _normalised(self, i: int, z: Tensor, learning: Tensor | None) -> Tensor:
        members, n, width = z.shape
        mean, var = self.get_buffer(f'running_mean_{i}'), self.get_buffer(f'running_var_{i}')
        kept = []
        if self.training and learning is not None and not learning.all():
            kept = [mean, var]
            mean, var = mean.clone(), var.clone()
        # one batch normalisation of M·h channels
        flat = F.batch_norm(
            z.transpose(0, 1).reshape(n, members * width), mean.view(-1), var.view(-1),
            self.norm_weights[i].view(-1), self.norm_biases[i].view(-1), self.training, MOMENTUM, EPS,
        )  # fmt: skip
        for own, followed in zip(kept, (mean, var)):
            own[learning] = followed[learning]
        return flat.view(n, members, width).transpose(0, 1)

    def extra_repr(self) -> str:
        return f'members={self.members}, widths={self.widths}, seed={self.seed}'

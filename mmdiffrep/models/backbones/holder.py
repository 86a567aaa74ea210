"""DenoiserHolder: keeps a denoiser's frozen weights out of checkpoints, optimizers, DDP and EMA copies."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.diffusion.taps import find_module


class DenoiserHolder(nn.Module):
    """A denoiser of which only the trained parts are visible to the module tree.

    Frozen weights that can be found again (the denoiser has a fingerprint) live outside the tree: no ``parameters()``, no
    ``state_dict()`` and no copy sees them, only ``.to()``. Trained parts are registered under their own path, so their keys
    are ``<holder>.up_blocks.1.…``, the network's own names. A denoiser without a fingerprint is registered whole.

    The buffer ``frozen_digest`` (SHA-256 of the fingerprint) goes into checkpoints and is compared when one is loaded.

    Args:
        denoiser: its network's parameters all have ``requires_grad`` set as they are to be trained.
        trained: paths of the trained parts in ``denoiser.network``; ``['']`` is all of it.
    """

    frozen_digest: Tensor

    def __init__(self, denoiser: Denoiser, trained: Iterable[str] = ()) -> None:
        super().__init__()
        self.trained_paths = list(trained)
        # in a list, so that nn.Module does not register it
        self._outside = [denoiser]
        text = denoiser.fingerprint
        if text is None or '' in self.trained_paths:
            self.add_module('network', denoiser.network)
            text = 'none'
        else:
            for path in self.trained_paths:
                _attach(self, path, find_module(denoiser.network, path))
        digest = hashlib.sha256(text.encode()).digest()
        self.register_buffer('frozen_digest', torch.tensor(list(digest), dtype=torch.uint8))

    @property
    def denoiser(self) -> Denoiser:
        return self._outside[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DenoiserHolder:
        self.denoiser._apply(fn)  # .to(), .cuda(), .half() reach the frozen weights too
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> DenoiserHolder:
        """The frozen part stays in eval mode; trained parts follow."""
        self.training = mode
        self.denoiser.eval()
        for path in self.trained_paths:
            find_module(self.denoiser.network, path).train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> DenoiserHolder:
        """A copy (an EMA, say) shares the frozen tensors and has trained parts of its own."""
        visible = {id(p) for p in self.parameters()} | {id(b) for b in self.buffers()}
        tensors = list(self.denoiser.parameters()) + list(self.denoiser.buffers())
        for tensor in tensors:
            if id(tensor) not in visible:
                memo[id(tensor)] = tensor
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update({key: copy.deepcopy(value, memo) for key, value in vars(self).items()})
        return clone

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(prefix + 'frozen_digest')
        if saved is not None and not torch.equal(
            saved.to(self.frozen_digest.device), self.frozen_digest
        ):
            raise ValueError(
                'this checkpoint was trained on other frozen diffusion weights than the config names now '
                f'({self.denoiser.fingerprint}). It holds only the trained part, which fits no other weights: give the '
                "config's `pretrained` (or seed) that it was trained with"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register ``module`` at a dotted path below ``root``, with empty modules on the way."""
    *parents, leaf = path.split('.')
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(leaf, module)

"""FrozenHolder: frozen weights that are used but in no checkpoint, optimizer, DDP or EMA copy."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def digest(fingerprint: str) -> Tensor:
    """SHA-256 of a fingerprint as a buffer that goes into checkpoints, (32,) uint8."""
    return torch.tensor(list(hashlib.sha256(fingerprint.encode()).digest()), dtype=torch.uint8)


def differs(state_dict: dict[str, Tensor], name: str, own: Tensor) -> bool:
    """Whether a checkpoint has another digest than this model's."""
    saved = state_dict.get(name)
    return saved is not None and not torch.equal(saved.to(own.device), own)


class FrozenHolder(nn.Module):
    """Keeps a module outside the module tree: no ``parameters()``, no ``state_dict()`` and no copy sees it, only ``.to()``.

    ``train()`` does not reach it. The buffer ``frozen_digest`` (SHA-256 of the fingerprint) goes into checkpoints and is compared
    when one is loaded.

    Args:
        frozen: the module, without gradients and in eval mode.
        fingerprint: names its weights so that they can be found again.
        what: what it is, for the error message.
    """

    frozen_digest: Tensor

    def __init__(self, frozen: nn.Module, fingerprint: str, what: str) -> None:
        super().__init__()
        # in a list, so that nn.Module does not register it
        self._outside = [frozen]
        self.fingerprint, self.what = fingerprint, what
        self.register_buffer('frozen_digest', digest(fingerprint))

    @property
    def frozen(self) -> Any:
        return self._outside[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenHolder:
        self.frozen._apply(fn)  # .to(), .cuda(), .half() reach the frozen weights too
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenHolder:
        """A copy (an EMA, say) shares the frozen tensors; what is registered here is its own."""
        visible = {id(p) for p in self.parameters()} | {id(b) for b in self.buffers()}
        for tensor in [*self.frozen.parameters(), *self.frozen.buffers()]:
            if id(tensor) not in visible:
                memo[id(tensor)] = tensor
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update(
            {key: copy.deepcopy(value, memo) for key, value in vars(self).items()}
        )
        return clone

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if differs(state_dict, prefix + 'frozen_digest', self.frozen_digest):
            raise ValueError(
                f'this checkpoint was trained on other frozen {self.what} weights than the config names now '
                f'({self.fingerprint}). It holds only the trained part, which fits no other weights: give the '
                "config's `pretrained` (or seed) that it was trained with"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

"""How much memory a call takes at its peak, found from shapes alone, and how many images fit into a budget."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

GIB = 2**30


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators make: bytes that are alive, and the most there were. Views and results in place are no new storages."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        parts = found if isinstance(found, (tuple, list)) else [found]
        for part, declared in zip(parts, func._schema.returns):
            if declared.alias_info is None:  # neither a view nor in place
                for x in tree_leaves(part):
                    if isinstance(x, Tensor):
                        self._add(x.untyped_storage())
        return found

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._freed, size)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def _freed(self, size: int) -> None:
        self.alive -= size


def peak_bytes(call: Callable[[], Any]) -> int:
    """Bytes that a call makes at its peak beside what was there, without arithmetic: its tensors are fake.

    Counted is what operators give; the work space of a kernel is not, and torch's allocator rounds up.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        call()
    return live.peak


def rows_within(budget: float, peak_of: Callable[[int], int]) -> tuple[int, int]:
    """How many rows fit: (rows, at least 1; bytes of a single one).

    Args:
        budget: bytes.
        peak_of: bytes at the peak with so many rows; they grow by the same amount with each.
    """
    one, two = peak_of(1), peak_of(2)
    each = max(two - one, 1)
    return max(1, int((budget - (one - each)) // each)), one

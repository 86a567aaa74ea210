"""DenoiserHolder: keeps a denoiser's frozen weights out of checkpoints, optimizers, DDP and EMA copies."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.diffusion.taps import find_module

from ..frozen import FrozenHolder


class DenoiserHolder(FrozenHolder):
    """A denoiser of which only the trained parts are visible to the module tree.

    Frozen weights that can be found again (the denoiser has a fingerprint) live outside the tree. Trained parts are registered
    under their own path, so their keys are ``<holder>.up_blocks.1.…``, the network's own names. A denoiser without a fingerprint
    is registered whole.

    Args:
        denoiser: its network's parameters all have ``requires_grad`` set as they are to be trained.
        trained: paths of the trained parts in ``denoiser.network``; ``['']`` is all of it.
    """

    def __init__(self, denoiser: Denoiser, trained: Iterable[str] = ()) -> None:
        paths = list(trained)
        text = denoiser.fingerprint
        whole = text is None or '' in paths
        super().__init__(denoiser, 'none' if whole or text is None else text, 'diffusion')
        self.trained_paths = paths
        if whole:
            self.add_module('network', denoiser.network)
        else:
            for path in paths:
                _attach(self, path, find_module(denoiser.network, path))

    @property
    def denoiser(self) -> Denoiser:
        return self.frozen

    def train(self, mode: bool = True) -> DenoiserHolder:
        """The frozen part stays in eval mode; trained parts follow."""
        self.training = mode
        self.denoiser.eval()
        for path in self.trained_paths:
            find_module(self.denoiser.network, path).train(mode)
        return self


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register ``module`` at a dotted path below ``root``, with empty modules on the way."""
    *parents, leaf = path.split('.')
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(leaf, module)

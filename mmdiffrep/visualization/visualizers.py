"""Registered visualisers. Those that subclass mmseg's are there where mmseg is."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmseg') is not None:
    from .uncertainty_visualizer import UncertaintyVisualizer

    __all__ += ['UncertaintyVisualizer']

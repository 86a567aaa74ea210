"""Registered models: denoisers, adapters, backbones, conditioners, pre-trainers, classifiers; pixel ensembles where mmseg is, open-vocabulary ones where mmdet is."""

from importlib.util import find_spec

from . import (
    adapters,
    backbones,
    classification,
    conditioners,
    correspondence,
    denoisers,
    pretrainers,
)

__all__ = ['adapters', 'backbones', 'classification', 'conditioners', 'correspondence', 'denoisers', 'pretrainers']

if find_spec('mmseg') is not None:
    from . import ensemble

    __all__ += ['ensemble']

if find_spec('mmdet') is not None:
    from . import openvocab

    __all__ += ['openvocab']

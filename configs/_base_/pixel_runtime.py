# Features of the training images are computed once, in memory; predictions are drawn with their uncertainty.
_base_ = ['default_runtime.py']
custom_hooks = [dict(type='mmdiffrep.RandomStateHook'), dict(type='mmdiffrep.PixelFeaturesHook')]
visualizer = dict(type='mmdiffrep.UncertaintyVisualizer')

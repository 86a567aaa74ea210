# What every classifier's run shares: epochs, top-1 and top-5, a confusion matrix, the best checkpoint by top-1.
_base_ = ['mmengine_runtime.py']
val_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1'))
custom_hooks = [dict(type='mmdiffrep.RandomStateHook'), dict(type='mmdiffrep.ConfusionMatrixHook')]
env_cfg = dict(cudnn_benchmark=True)

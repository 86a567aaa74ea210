"""ShardedClipHook: gradients whose parts lie in several processes are clipped by the norm of the whole."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from mmdiffrep.registry import HOOKS


@HOOKS.register_module()
class ShardedClipHook(Hook):
    """For FSDP: ``optim_wrapper.clip_grad`` as without it.

    mmengine 0.10.7 clips the parts of the gradients that a process holds by their own norm, so that each process scales its part differently.

    Raises:
        ValueError: another norm than 2.
    """

    def before_train(self, runner: Any) -> None:
        wrapper = runner.optim_wrapper
        settings = wrapper.clip_grad_kwargs
        if not settings or wrapper.clip_func is not torch.nn.utils.clip_grad_norm_:
            return
        if settings.get('norm_type', 2) != 2:
            raise ValueError(f'clip_grad.norm_type={settings["norm_type"]} was given; allowed with --fsdp: 2')
        wrapper._clip_grad = lambda: _clip(wrapper, settings['max_norm'])


def _clip(wrapper: Any, most: float) -> None:
    gradients = [p.grad for group in wrapper.optimizer.param_groups for p in group['params'] if p.grad is not None]
    device = gradients[0].device if gradients else wrapper.optimizer.param_groups[0]['params'][0].device
    total = torch.zeros((), device=device)
    for gradient in gradients:
        total += gradient.float().square().sum()
    all_reduce(total, 'sum')
    norm = total.sqrt()
    for gradient in gradients:
        gradient.mul_((most / (norm + 1e-6)).clamp(max=1).to(gradient))
    MessageHub.get_current_instance().update_scalar(f'train/{wrapper.grad_name}', float(norm))

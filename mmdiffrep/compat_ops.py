"""The ops of ``mmcv._ext`` that a stand-in can give: mmcv 2.1.0's signatures, computed by torch and torchvision.

The others raise an error that names the op and the cure. See ``compat.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

CURE = (
    'Install mmcv with its compiled ops (mmcv 2.1.0 builds with torch <= 2.13: '
    "pip uninstall mmcv-lite; pip install 'mmcv==2.1.0'), or choose a model that does not use this op"
)


class StandIn(ModuleType):
    """``mmcv._ext`` where mmcv has no compiled ops."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith('__'):
            raise AttributeError(name)
        return OPS[name] if name in OPS else _missing(name)


def _missing(name: str) -> Callable[..., Any]:
    def op(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f'mmcv op {name!r} is compiled code, and the mmcv installed here has none (mmcv-lite). {CURE}'
        )

    op.__name__ = name
    return op


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept, by falling score; a side is ``x2 - x1 + offset`` pixels. boxes (N, 4), scores (N,)."""
    from torchvision.ops import nms as torchvision_nms

    boxes = _at_least_float32(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision_nms(boxes, scores.to(boxes), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017): writes (x1, y1, x2, y2, new score) rows to dets (N, 5), returns their indices.

    method: 0 removes overlapping boxes, 1 weighs by ``1 - iou``, 2 by ``exp(-iou^2 / sigma)``.
    """
    left, scores = torch.arange(len(boxes)), scores.clone()
    kept: list[int] = []
    while len(left):
        best = int(left[scores[left].argmax()])
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        left = left[left != best]
        iou = _iou(boxes[best], boxes[left], offset)
        if method == 2:
            weight = torch.exp(-(iou**2) / sigma)
        else:
            weight = torch.where(iou >= iou_threshold, (1 - iou) * method, torch.ones_like(iou))
        scores[left] *= weight
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.long)


def _iou(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """box (4,), boxes (N, 4) -> (N,)."""
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])) + offset
    shared = sides.clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    return shared / ((box[2:] - box[:2] + offset).prod() + areas - shared)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    **settings: Any,
) -> None:
    """Writes output (R, C, h, w) from input (N, C, H, W) and rois (R, 5): image, x1, y1, x2, y2."""
    output.copy_(_roi_align(input, rois, **settings))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **settings: Any,
) -> None:
    """Writes grad_input. RoIAlign is linear in its input, so any input gives its gradient."""
    with torch.enable_grad():
        anything = torch.zeros_like(grad_input, dtype=torch.float32, requires_grad=True)
        output = _roi_align(anything, rois, **settings)
        grad_input.copy_(torch.autograd.grad(output, anything, grad_output.to(output))[0])


def _roi_align(
    input: Tensor,
    rois: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    from torchvision.ops import roi_align

    if pool_mode != 1:
        raise RuntimeError(
            "mmcv op 'roi_align' with pool_mode='max' is compiled code, and the mmcv installed here has none "
            f"(mmcv-lite); pool_mode='avg' works. {CURE}"
        )
    input = _at_least_float32(input)
    size = (aligned_height, aligned_width)
    return roi_align(input, rois.to(input), size, spatial_scale, sampling_ratio, aligned)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention by mmcv's own PyTorch function, which mmcv itself takes on the CPU only.

    value (B, N, heads, C), spatial_shapes (levels, 2), locations (B, Q, heads, levels, points, 2),
    weights (B, Q, heads, levels, points) -> (B, Q, heads * C).
    """
    return _deformable_attention(value, spatial_shapes, locations, weights).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    """Writes the three gradients; the forward is computed again for them."""
    with torch.enable_grad():
        leaves = [t.detach().float().requires_grad_() for t in (value, locations, weights)]
        output = _deformable_attention(leaves[0], spatial_shapes, leaves[1], leaves[2])
        grads = torch.autograd.grad(output, leaves, grad_output.to(output))
    for out, grad in zip((grad_value, grad_locations, grad_weights), grads):
        out.copy_(grad)


def _deformable_attention(
    value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    shapes = spatial_shapes.tolist()  # one wait for the device instead of one a level
    value, locations, weights = (_at_least_float32(t) for t in (value, locations, weights))
    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the focal loss (Lin et al. 2017) of input (N, K) logits; target (N,) class ids, K is background.

    mmdet takes this op on a GPU; on the CPU it has its own in PyTorch.
    """
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the gradient of the summed focal loss."""
    with torch.enable_grad():
        leaf = input.detach().requires_grad_()
        loss = _focal_loss(leaf, target, weight, gamma, alpha).sum()
        grad_input.copy_(torch.autograd.grad(loss, leaf)[0])


def _focal_loss(
    input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    classes = input.shape[1]
    one_hot = functional.one_hot(target, classes + 1)[:, :classes]
    logits = _at_least_float32(input)
    loss = sigmoid_focal_loss(logits, one_hot.to(logits), alpha=alpha, gamma=gamma)
    if len(weight):  # by the target's class; background has none
        row = torch.cat([weight, weight.new_ones(1)])[target].to(loss)
        loss = loss * row[:, None]
    return loss


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _no_compiler() -> str:
    return 'none (mmcv without compiled ops)'


OPS: dict[str, Callable[..., Any]] = {
    op.__name__: op
    for op in (
        nms,
        softnms,
        roi_align_forward,
        roi_align_backward,
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    )
}
OPS |= dict(get_compiler_version=_no_compiler, get_compiling_cuda_version=_no_compiler)

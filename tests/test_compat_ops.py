"""The stand-in for ``mmcv._ext``: found only where no real one is, and equal to slow oracles."""

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder

import mmcv
import numpy as np
import pytest
import torch

from mmdiffrep import compat, compat_ops

real_ops = PathFinder.find_spec('mmcv._ext', mmcv.__path__) is not None


@pytest.mark.skipif(real_ops, reason='mmcv has its compiled ops here')
def test_stand_in_is_found_and_needed():
    spec = importlib.util.find_spec('mmcv._ext')
    assert spec.loader is compat.StandInFinder and compat.uses_stand_in()
    assert isinstance(importlib.import_module('mmcv._ext'), compat_ops.StandIn)
    assert importlib.import_module('mmcv._ext').__spec__ is not None


def test_real_ops_win(tmp_path, monkeypatch):
    (tmp_path / '_ext.py').write_text('')
    monkeypatch.setattr(mmcv, '__path__', [*mmcv.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    assert importlib.util.find_spec('mmcv._ext').origin == str(tmp_path / '_ext.py')
    assert not compat.uses_stand_in()


def test_install_can_be_repeated():
    compat.install()
    assert sys.meta_path.count(compat.StandInFinder) == 1


def test_missing_op_names_itself_and_the_cure():
    with pytest.raises(RuntimeError, match=r"mmcv op 'carafe_forward' .* Install mmcv with its"):
        compat_ops.StandIn('mmcv._ext').carafe_forward(1, 2)


def test_toolkits_import():
    import mmdet.models
    import mmseg.models
    from mmcv.ops import get_compiler_version

    assert mmseg.models and mmdet.models and get_compiler_version()


def iou(a, b, offset):
    """Oracle: two boxes, plain numbers."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    return width * height / (sum(area) - width * height)


def random_boxes(number, seed):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (number, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 20, (number, 2))], 1)
    return boxes.astype(np.float32), rng.permutation(number).astype(np.float32) / number


def slow_nms(boxes, scores, threshold, offset):
    kept = []
    for i in np.argsort(-scores):
        if all(iou(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('seed', [0, 1])
def test_nms(offset, seed):
    from mmcv.ops import nms

    boxes, scores = random_boxes(40, seed)
    dets, indices = nms(boxes, scores, iou_threshold=0.4, offset=offset)
    expected = slow_nms(boxes, scores, 0.4, offset)
    assert 5 < len(expected) < 40
    assert indices.tolist() == expected
    np.testing.assert_array_equal(dets[:, :4], boxes[expected])


def test_nms_offset_matters():
    from mmcv.ops import nms

    # 10 x 10 and 10 x 7 pixels with the offset; IoU 0.7 there, 9 * 6 / 81 = 0.667 without it
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 6]])
    scores = torch.tensor([0.9, 0.8])
    assert len(nms(boxes, scores, 0.68, offset=0)[1]) == 2
    assert len(nms(boxes, scores, 0.68, offset=1)[1]) == 1


def test_batched_nms_keeps_classes_apart():
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(40, 2)
    classes = np.arange(40) % 3
    _, kept = batched_nms(
        torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes), dict(iou_threshold=0.4)
    )
    expected = []
    for c in range(3):
        index = np.flatnonzero(classes == c)
        expected += index[slow_nms(boxes[index], scores[index], 0.4, 0)].tolist()
    assert kept.tolist() == sorted(expected, key=lambda i: -scores[i])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method):
    from mmcv.ops import soft_nms

    boxes, scores = random_boxes(20, 3)
    dets, indices = soft_nms(boxes, scores, 0.3, sigma=0.5, min_score=0.05, method=method)
    left, now, expected = list(range(20)), scores.astype(float).tolist(), []
    while left:
        best = max(left, key=lambda i: now[i])
        expected.append((best, now[best]))
        left.remove(best)
        for i in left:
            overlap = iou(boxes[best].astype(float), boxes[i].astype(float), 0)
            if method == 'gaussian':
                now[i] *= np.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                now[i] *= 1 - overlap if method == 'linear' else 0
        left = [i for i in left if now[i] >= 0.05]
    assert indices.tolist() == [i for i, _ in expected]
    np.testing.assert_allclose(dets[:, 4], [s for _, s in expected], rtol=1e-5)
    np.testing.assert_array_equal(dets[:, :4], boxes[indices])


def slow_roi_align(image, roi, size, scale, samples, aligned):
    """Oracle: one channel, one box; bilinear samples at the middles of sub-bins, averaged."""

    def at(y, x):
        if not (-1 <= y <= image.shape[0] and -1 <= x <= image.shape[1]):
            return 0.0
        y, x = max(y, 0), max(x, 0)
        y, x = min(y, image.shape[0] - 1), min(x, image.shape[1] - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
        v, u = y - top, x - left
        upper = image[top, left] * (1 - u) + image[top, right] * u
        lower = image[bottom, left] * (1 - u) + image[bottom, right] * u
        return upper * (1 - v) + lower * v

    x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in roi)
    least = 0 if aligned else 1
    bin_h, bin_w = max(y2 - y1, least) / size[0], max(x2 - x1, least) / size[1]
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        rows, columns = samples or int(np.ceil(bin_h)), samples or int(np.ceil(bin_w))
        points = [
            at(y1 + (i + (a + 0.5) / rows) * bin_h, x1 + (j + (b + 0.5) / columns) * bin_w)
            for a in range(rows)
            for b in range(columns)
        ]
        out[i, j] = np.mean(points)
    return out


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('samples', [0, 2])
def test_roi_align(aligned, samples):
    from mmcv.ops import RoIAlign

    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 12)
    rois = torch.tensor([[0, 1.3, 2.1, 20.7, 15.9], [1, 3, 0.2, 8.1, 17], [1, 5, 5, 5.2, 5.1]])
    out = RoIAlign((2, 3), 0.5, samples, 'avg', aligned)(images, rois)
    for n, (image, *roi) in enumerate(rois.tolist()):
        for c in range(3):
            plane = images[int(image), c].double().numpy()
            expected = slow_roi_align(plane, roi, (2, 3), 0.5, samples, aligned)
            np.testing.assert_allclose(out[n, c], expected, atol=1e-5)


def test_roi_align_gradient_is_its_adjoint():
    from mmcv.ops import RoIAlign

    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 12, requires_grad=True)
    rois = torch.tensor([[0, 1.3, 2.1, 20.7, 15.9], [1, 3, 0.2, 8.1, 17]])
    out = RoIAlign((4, 4), 0.5, 2)(images, rois)
    direction = torch.randn_like(out)
    (out * direction).sum().backward()
    # RoIAlign is linear: <A x, g> = <x, A^T g> for every x
    other = torch.randn_like(images)
    there = (RoIAlign((4, 4), 0.5, 2)(other, rois) * direction).sum()
    torch.testing.assert_close(there, (other * images.grad).sum(), rtol=1e-4, atol=1e-4)
    assert images.grad.abs().sum() > 0


def test_roi_align_half_precision():
    from mmcv.ops import RoIAlign

    images, rois = torch.randn(1, 2, 8, 8), torch.tensor([[0, 1.0, 1, 6, 6]])
    out = RoIAlign(2, 1.0)(images.half(), rois)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), RoIAlign(2, 1.0)(images, rois), atol=2e-3, rtol=2e-3)


@pytest.mark.skipif(real_ops, reason='mmcv has its compiled ops here')
def test_roi_align_max_is_refused():
    from mmcv.ops import RoIAlign

    with pytest.raises(RuntimeError, match=r"pool_mode='max' .* pool_mode='avg' works"):
        RoIAlign(2, 1.0, pool_mode='max')(
            torch.randn(1, 1, 4, 4), torch.tensor([[0, 0.0, 0, 3, 3]])
        )


def deformable_inputs():
    torch.manual_seed(0)
    shapes = torch.tensor([[6, 8], [3, 4]])
    starts = torch.tensor([0, 48])
    value = torch.randn(2, 60, 2, 4, requires_grad=True)
    locations = torch.rand(2, 5, 2, 2, 3, 2, requires_grad=True)
    weights = torch.rand(2, 5, 2, 2, 3, requires_grad=True)
    return value, shapes, starts, locations, weights


@pytest.mark.skipif(real_ops and not torch.cuda.is_available(), reason='the real op needs a GPU')
def test_deformable_attention_where_mmcv_takes_the_gpu_op():
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    value, shapes, starts, locations, weights = deformable_inputs()
    leaves = (value, locations, weights)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    direction = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves, direction)
    if real_ops:
        value, shapes, starts, locations, weights, direction = (
            t.cuda() for t in (value, shapes, starts, locations, weights, direction)
        )
        leaves = (value, locations, weights)
    out = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    grads = torch.autograd.grad(out, leaves, direction)
    for got, wanted in zip((out, *grads), (expected, *expected_grads)):
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_deformable_attention_on_a_gpu():
    from mmcv.ops import MultiScaleDeformableAttention

    torch.manual_seed(0)
    module = MultiScaleDeformableAttention(
        embed_dims=8, num_heads=2, num_levels=2, batch_first=True
    )
    _, shapes, starts, _, _ = deformable_inputs()
    query, value, points = torch.randn(2, 5, 8), torch.randn(2, 60, 8), torch.rand(2, 5, 2, 2)
    inputs = dict(
        value=value, reference_points=points, spatial_shapes=shapes, level_start_index=starts
    )
    expected = module(query, **inputs)
    out = module.cuda()(query.cuda(), **{k: v.cuda() for k, v in inputs.items()})
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss(weighted):
    """sum over classes of -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017, equation 5)."""
    torch.manual_seed(0)
    logits, target = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 3])
    weight = torch.tensor([0.5, 1.0, 2.0]) if weighted else torch.empty(0)
    p = logits.sigmoid()
    positive = torch.arange(3) == target[:, None]
    p_t = torch.where(positive, p, 1 - p)
    alpha_t = torch.where(positive, 0.25, 0.75)
    expected = -alpha_t * (1 - p_t) ** 2 * p_t.log()
    if weighted:
        expected = expected * torch.tensor([0.5, 1, 2, 1])[target][:, None]
    out, grad = torch.zeros(6, 3), torch.zeros(6, 3)
    compat_ops.sigmoid_focal_loss_forward(logits.detach(), target, weight, out, 2.0, 0.25)
    compat_ops.sigmoid_focal_loss_backward(logits.detach(), target, weight, grad, 2.0, 0.25)
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0])


# --- a box detector of mmdet -------------------------------------------------------------------


@pytest.fixture
def mmdet_scope():
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def mask_rcnn():
    """mmdet's Mask R-CNN, small: a ResNet-18, an FPN of 16 channels, two classes."""
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4)
    head = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
    boxes = dict(type='L1Loss', loss_weight=1.0)

    def assigner(positive, negative):
        return dict(
            type='MaxIoUAssigner', pos_iou_thr=positive, neg_iou_thr=negative, min_pos_iou=0.3
        )

    def sampler(number):
        return dict(type='RandomSampler', num=number, pos_fraction=0.5, add_gt_as_proposals=True)

    def extractor(size):
        return dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=0),
            out_channels=16,
            featmap_strides=[4, 8],
        )

    proposals = dict(nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7))
    config = dict(
        type='MaskRCNN',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_mask=True, pad_size_divisor=32),
        backbone=dict(type='ResNet', depth=18, out_indices=(0, 1, 2, 3)),
        neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5),
        rpn_head=dict(
            type='RPNHead',
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0], strides=[4, 8, 16, 32, 64]
            ),
            bbox_coder=coder,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=boxes,
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=extractor(7),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=16,
                fc_out_channels=16,
                roi_feat_size=7,
                num_classes=2,
                bbox_coder=coder,
                loss_cls=head,
                loss_bbox=boxes,
            ),
            mask_roi_extractor=extractor(14),
            mask_head=dict(
                type='FCNMaskHead',
                num_convs=1,
                in_channels=16,
                conv_out_channels=16,
                num_classes=2,
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=assigner(0.7, 0.3), sampler=sampler(32), allowed_border=-1, pos_weight=-1
            ),
            rpn_proposal=proposals,
            rcnn=dict(
                assigner=assigner(0.5, 0.5), sampler=sampler(16), mask_size=28, pos_weight=-1
            ),
        ),
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(
                score_thr=0.0,
                nms=dict(type='nms', iou_threshold=0.5),
                max_per_img=5,
                mask_thr_binary=0.5,
            ),
        ),
    )
    return MODELS.build(ConfigDict(config))


def test_mask_rcnn_trains_and_predicts(mmdet_scope):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    model = mask_rcnn()
    sample = DetDataSample(
        metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1))
    )
    masks = np.zeros((2, 64, 64), np.uint8)
    masks[0, 8:40, 8:40], masks[1, 30:60, 20:62] = 1, 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 40, 40], [20, 30, 62, 60]]),
        labels=torch.tensor([0, 1]),
        masks=BitmapMasks(masks, 64, 64),
    )
    batch = dict(
        inputs=[torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)], data_samples=[sample]
    )
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total) and 'loss_mask' in losses
    assert model.neck.lateral_convs[0].conv.weight.grad.abs().sum() > 0

    model.eval()
    with torch.no_grad():
        found = model.test_step(batch)[0].pred_instances
    assert 1 <= len(found) <= 5
    assert found.masks.shape == (len(found), 64, 64)

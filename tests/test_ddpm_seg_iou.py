"""The paper's mIoU and mmseg's, against slow versions, on labels with ignored pixels and absent classes."""

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData

import mmdiffrep  # noqa: F401
from mmdiffrep.evaluation import DDPMSegIoU

pytest.importorskip('mmseg')
from mmengine.registry import DefaultScope  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

BOTH = [dict(type='mmseg.IoUMetric', iou_metrics=['mIoU']), dict(type='mmdiffrep.DDPMSegIoU')]


def sample(pred, true):
    """Labels (H, W) as a data sample."""
    return SegDataSample(
        metainfo=dict(img_path='cow.png'),
        pred_sem_seg=PixelData(data=torch.as_tensor(pred)[None]),
        gt_sem_seg=PixelData(data=torch.as_tensor(true)[None]),
    )


def scores(preds, trues, classes, batch=1):
    """Both metrics from one list of evaluators."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        evaluator = Evaluator(BOTH)
    evaluator.dataset_meta = dict(classes=[f'class {k}' for k in range(classes)])
    samples = [sample(p, t) for p, t in zip(preds, trues)]
    for i in range(0, len(samples), batch):
        evaluator.process(data_samples=samples[i : i + batch], data_batch=None)
    return evaluator.evaluate(len(samples))


def slow_paper(preds, trues, classes):
    """Pooled over images, pixel by pixel; ignored pixels are no class but may be predicted; an absent class scores 0."""
    total = 0.0
    for c in range(classes):
        meet = union = 0
        for pred, true in zip(preds, trues):
            for p, t in zip(pred.flatten().tolist(), true.flatten().tolist()):
                meet += p == c and t == c
                union += p == c or t == c
        total += meet / union if union else 0.0
    return 100 * total / classes


def slow_mmseg(preds, trues, classes):
    """Pooled over images, without ignored pixels; an absent class is left out."""
    found = []
    for c in range(classes):
        meet = union = 0
        for pred, true in zip(preds, trues):
            for p, t in zip(pred.flatten().tolist(), true.flatten().tolist()):
                if t != 255:
                    meet += p == c and t == c
                    union += p == c or t == c
        if union:
            found.append(meet / union)
    return 100 * sum(found) / len(found)


def draw(rng, classes, used, ignored, count=4):
    """Images of different sizes; of ``classes`` only the first ``used`` occur."""
    preds, trues = [], []
    for k in range(count):
        size = (7 + k, 9 + 2 * k)
        true = rng.integers(0, used, size)
        pred = np.where(rng.random(size) < 0.6, true, rng.integers(0, used, size))
        trues.append(np.where(rng.random(size) < ignored, 255, true))
        preds.append(pred)
    return preds, trues


@pytest.mark.parametrize(
    'classes, used, ignored', [(4, 4, 0.0), (4, 4, 0.3), (6, 4, 0.0), (6, 4, 0.3), (3, 1, 0.9)]
)
def test_both_are_what_the_slow_versions_give(classes, used, ignored):
    preds, trues = draw(np.random.default_rng(classes * used), classes, used, ignored)
    got = scores(preds, trues, classes)
    assert got['ddpm_seg/mIoU'] == pytest.approx(slow_paper(preds, trues, classes), abs=1e-9)
    assert got['mIoU'] == pytest.approx(
        slow_mmseg(preds, trues, classes), abs=0.006
    )  # rounded by mmseg
    if not ignored and used == classes:
        assert got['ddpm_seg/mIoU'] == pytest.approx(got['mIoU'], abs=0.006)
    else:
        assert got['ddpm_seg/mIoU'] < got['mIoU']
    assert scores(preds, trues, classes, batch=3) == got


def test_by_hand():
    """Class 0: 2 of 3. Class 1: 1 of 4, since 1 is predicted at an ignored pixel too. Class 2 occurs nowhere."""
    true = np.array([[0, 0, 1, 255], [1, 255, 0, 1]])
    pred = np.array([[0, 0, 1, 1], [3, 3, 3, 3]])
    got = scores([pred], [true], 4)
    assert got['ddpm_seg/mIoU'] == pytest.approx(100 * (2 / 3 + 1 / 4 + 0 + 0) / 4)
    assert got['mIoU'] == pytest.approx(100 * (2 / 3 + 1 / 3 + 0) / 3, abs=0.006)


def test_a_class_that_is_only_predicted_scores_nothing_in_both():
    true, pred = np.zeros((2, 2), int), np.array([[0, 0], [0, 1]])
    got = scores([pred], [true], 2)
    assert got['ddpm_seg/mIoU'] == pytest.approx(100 * (3 / 4 + 0) / 2) == got['mIoU']


def test_it_is_pooled_and_not_averaged_over_images():
    a, b = (np.zeros((1, 9), int), np.zeros((1, 9), int)), (np.array([[1]]), np.array([[0]]))
    got = scores([a[0], b[0]], [a[1], b[1]], 2)
    assert got['ddpm_seg/mIoU'] == pytest.approx(100 * (9 / 10 + 0) / 2)


def test_a_prediction_of_another_size_is_refused():
    metric = DDPMSegIoU()
    metric.dataset_meta = dict(classes=['a', 'b'])
    wrong = sample(np.zeros((4, 4), int), np.zeros((8, 8), int)).to_dict()
    with pytest.raises(
        ValueError, match=r'cow\.png: the prediction is \(4, 4\) and the labels \(8, 8\)'
    ):
        metric.process(None, [wrong])

"""Top-k accuracy and confusion against slow versions; the hook's picture and table."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image

import mmdiffrep  # noqa: F401
from mmdiffrep.engine.hooks import ConfusionMatrixHook
from mmdiffrep.evaluation import ClassAccuracy
from mmdiffrep.visualization.confusion import confusion_picture


def filled(scores, truth, **kwargs):
    metric = ClassAccuracy(**kwargs)
    metric.process({}, [dict(pred_scores=s, pred_label=int(s.argmax()), gt_label=t) for s, t in zip(scores, truth)])
    return metric


def test_accuracies_against_a_loop():
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (200, 7), generator=g).float()  # with ties
    truth = torch.randint(0, 6, (200,), generator=g).tolist()  # class 6 never occurs
    metric = filled(scores, truth, topk=(1, 3, 7))
    found = metric.compute_metrics(metric.results)
    hits = {1: 0, 3: 0, 7: 0}
    counts = np.zeros((7, 7), int)
    for row, t in zip(scores.tolist(), truth):
        order = sorted(range(7), key=lambda k: (-row[k], k))
        counts[t, order[0]] += 1
        for k in hits:
            hits[k] += t in order[:k]
    assert {k: found[f'top{k}'] for k in hits} == pytest.approx({k: v / 2 for k, v in hits.items()})
    assert found['top7'] == 100
    assert found['mean_class'] == pytest.approx(100 * np.mean([counts[k, k] / counts[k].sum() for k in range(6)]))
    assert np.array_equal(metric.confusion.numpy(), counts)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='topk=0'):
        ClassAccuracy(topk=0)
    with pytest.raises(ValueError, match=r'topk=\[4\].*scores of 3 classes'):
        filled(torch.rand(2, 3), [0, 1], topk=4)
    with pytest.raises(ValueError, match='class 3'):
        filled(torch.rand(1, 3), [3])
    with pytest.raises(ValueError, match=r'\(K, K\) and K names'):
        confusion_picture(np.zeros((2, 3)), ['a', 'b'])


def test_the_hook_writes_picture_and_table(tmp_path):
    metric = filled(torch.eye(3)[[0, 0, 1, 2]], [0, 1, 1, 2])
    metric.dataset_meta = dict(classes=['a', 'b', 'c'])
    runner = SimpleNamespace(
        log_dir=str(tmp_path / 'log'), logger=MMLogger.get_instance('confusion'), val_evaluator=SimpleNamespace(metrics=[metric])
    )
    hook = ConfusionMatrixHook()
    hook.after_val_epoch(runner)  # nothing has been evaluated
    assert not (tmp_path / 'log').exists()
    metric.compute_metrics(metric.results)
    hook.after_val_epoch(runner, {'accuracy/top1': 75.0})
    rows = list(csv.reader((tmp_path / 'log' / 'confusion.csv').open()))
    assert rows == [['true / predicted', 'a', 'b', 'c'], ['a', '1', '0', '0'], ['b', '1', '1', '0'], ['c', '0', '0', '1']]
    assert np.array(Image.open(tmp_path / 'log' / 'confusion.png')).std() > 10


def test_the_picture_shows_shares_of_rows():
    """The cells' colours tell a row's shares apart: the diagonal is darkest for a perfect classifier."""
    perfect = confusion_picture(np.diag([5, 500]), ['a', 'b']).astype(int).sum(-1)
    wrong = confusion_picture(np.array([[0, 5], [500, 0]]), ['a', 'b']).astype(int).sum(-1)
    changed = np.argwhere(np.abs(perfect - wrong) > 100)
    top, left = changed.min(0)
    bottom, right = changed.max(0)
    centre_y, centre_x = (top + bottom) // 2, (left + right) // 2
    quarter = (slice(top + 5, centre_y - 15), slice(left + 5, centre_x - 15))
    assert np.median(perfect[quarter]) < np.median(wrong[quarter]) - 200

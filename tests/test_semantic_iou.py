"""Semantic data sets asked of an open-vocabulary model: numbering, wide labels, mmseg's own loading."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

import mmdiffrep  # noqa: F401

pytest.importorskip('mmseg')
from mmdiffrep.datasets import LoadWideAnnotations, ToyScenesDataset, VocabularySegDataset  # noqa: E402
from mmdiffrep.datasets.toyscenes import write_toyscenes  # noqa: E402
from mmdiffrep.datasets.toyscenes.classes import SEMANTIC_CLASSES, SHAPES, STUFF  # noqa: E402
from mmdiffrep.evaluation import SemanticIoU  # noqa: E402
from mmdiffrep.openvocab.vocabulary import Vocabulary  # noqa: E402

META = dict(classes=SEMANTIC_CLASSES, thing_classes=SHAPES, stuff_classes=STUFF)


def score(pred, truth, vocabulary, classes=SEMANTIC_CLASSES):
    metric = SemanticIoU()
    metric.dataset_meta = dict(classes=classes)
    sample = dict(
        pred_sem_seg=dict(data=pred), gt_sem_seg=dict(data=truth), vocabulary=vocabulary, img_path='a.png'
    )
    metric.process({}, [sample])
    return metric.compute_metrics(metric.results)['mIoU']


def test_predictions_are_renumbered_as_the_data_sets_labels():
    """ToyScenes' semantic classes begin with stuff; a vocabulary begins with things."""
    vocabulary = Vocabulary.parse(META)
    truth = torch.arange(13).repeat(5).view(1, 5, 13)
    pred = torch.tensor([vocabulary.names.index(SEMANTIC_CLASSES[i]) for i in truth.flatten()]).view(1, 5, 13)
    assert not torch.equal(pred, truth)
    assert score(pred, truth, vocabulary) == 100
    assert score(truth, truth, vocabulary) < 20


def test_a_panoptic_data_sets_labels_are_numbered_as_its_vocabulary():
    vocabulary = Vocabulary.parse('grass (stuff); cat')  # the cat comes first
    labels = torch.tensor([[[0, 0, 1, 255]]])
    metric = SemanticIoU()
    metric.dataset_meta = dict(classes=vocabulary.names)
    sample = dict(gt_sem_seg=dict(sem_seg=labels), vocabulary=vocabulary, img_path='a.png')
    metric.process({}, [{**sample, 'pred_sem_seg': dict(data=torch.tensor([[[0, 1, 1, 1]]]))}])
    assert metric.compute_metrics(metric.results)['mIoU'] == 50
    assert metric.prefix == 'semantic'


def test_iou_is_the_one_worked_out_by_hand():
    truth, pred = torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 1]]])
    assert score(pred, truth, Vocabulary.parse('a; b'), ('a', 'b')) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2, abs=0.01)


def test_another_vocabulary_is_refused():
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="2 classes, the data set 13.*ask='ade20k-150'"):
        score(labels, labels, Vocabulary.parse('a; b'))
    with pytest.raises(ValueError, match='no vocabulary'):
        score(labels, labels, None)


@pytest.mark.parametrize('reduce', [False, True])
def test_labels_beyond_255_are_kept(tmp_path, reduce):
    labels = np.array([[0, 1, 255], [256, 846, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), labels)
    results = dict(seg_map_path=str(tmp_path / 'a.png'), seg_fields=[], reduce_zero_label=reduce, label_map=None)
    got = LoadWideAnnotations(reduce_zero_label=reduce)(results)['gt_seg_map']
    wanted = [[65535, 0, 254], [255, 845, 65535]] if reduce else labels
    assert np.array_equal(got, wanted)
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match='one channel'):
        LoadWideAnnotations(reduce_zero_label=False)(results)


def test_a_data_sets_classes_are_a_vocabularys(tmp_path):
    write_toyscenes(tmp_path / 'scenes', dict(train=2), (48, 48))
    names = [f'name {i}' for i in range(12)] + ['thing']
    (tmp_path / 'names.json').write_text(json.dumps([*(f'{n} (stuff)' for n in names[:-1]), names[-1]]))
    data = VocabularySegDataset(
        vocabulary=str(tmp_path / 'names.json'), data_root=str(tmp_path / 'scenes'), img_suffix='.png',
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'), pipeline=[],
    )  # fmt: skip
    assert data.metainfo['classes'] == tuple(names) and len(data) == 2


def test_mmsegs_samples_go_through_the_model(tmp_path):
    """From mmseg's data set to its metric: the shape of the labels, and the order of the classes."""
    pytest.importorskip('mmdet')
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location('open_vocab', Path(__file__).with_name('test_open_vocab.py'))
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    model = helpers.build(ask=META, clip=None).eval()
    write_toyscenes(tmp_path / 'scenes', dict(val=2), (48, 64))
    data = ToyScenesDataset(
        data_root=str(tmp_path / 'scenes'), data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=[dict(type='mmcv.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations'), dict(type='mmseg.PackSegInputs')],
    )  # fmt: skip
    batch = [data[0], data[1]]
    with torch.no_grad():
        found = model.test_step(
            dict(inputs=[b['inputs'] for b in batch], data_samples=[b['data_samples'] for b in batch])
        )
    metric = SemanticIoU()
    metric.dataset_meta = data.metainfo
    assert isinstance(found[0].pred_sem_seg, PixelData) and found[0].pred_sem_seg.data.shape == (1, 48, 64)
    metric.process({}, [sample.to_dict() for sample in found])
    vocabulary = found[0].vocabulary
    names = np.array(vocabulary.names)[found[0].pred_sem_seg.data[0].numpy()]
    truth = np.array(SEMANTIC_CLASSES)[found[0].gt_sem_seg.data[0].numpy()]
    right = [int(((names == c) & (truth == c)).sum()) for c in SEMANTIC_CLASSES]
    assert metric.results[0][0].int().tolist() == right

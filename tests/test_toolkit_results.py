"""One head's results as the toolkits' own metrics and visualisers read them: a perfect answer has the best score, a wrong one not."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.datasets.toyscenes import write_toyscenes
from mmdiffrep.openvocab.vocabulary import Vocabulary

pytest.importorskip('mmdet')
from mmdet.structures import DetDataSample  # noqa: E402

from mmdiffrep.datasets import PanopticDataset  # noqa: E402
from mmdiffrep.models.openvocab.results import Results  # noqa: E402

SIZE = (64, 80)
SURE = 30.0  # a logit


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return write_toyscenes(tmp_path_factory.mktemp('results') / 'scenes', dict(val=4), SIZE)


@pytest.fixture(scope='module')
def data(scenes):
    pipeline = [dict(type='mmcv.LoadImageFromFile'), dict(type='mmdet.LoadPanopticAnnotations')]
    return PanopticDataset(
        data_root=str(scenes), ann_file='annotations/panoptic_val.json', test_mode=True, pipeline=pipeline,
        data_prefix=dict(img='images/val/', seg='annotations/panoptic_val/'), vocabulary='toyscenes',
    )  # fmt: skip


def answers(data, shift=0):
    """For each image the data sample that the model's results would be if every mask were right, classes shifted by ``shift``.

    The masks are cut out of the panoptic PNG here, by its ids.
    """
    vocabulary = Vocabulary.parse('toyscenes')
    for index in range(len(data)):
        info = data.get_data_info(index)
        png = cv2.imread(info['seg_map_path'])[..., ::-1].astype(int)
        ids = png[..., 0] + 256 * png[..., 1] + 65536 * png[..., 2]
        segments = info['segments_info']
        masks = torch.stack([torch.from_numpy(ids == s['id']) for s in segments])
        classes = [(s['category'] + shift) % len(vocabulary) for s in segments]
        log_probs = torch.full((len(segments), len(vocabulary) + 1), -SURE)
        log_probs[range(len(classes)), classes] = SURE
        sample = DetDataSample(metainfo=dict(img_id=info['img_id'], img_path=info['img_path'], ori_shape=SIZE, img_shape=SIZE))
        Results(semantic=True).write(sample, log_probs.log_softmax(-1), (masks * 2.0 - 1) * SURE, SIZE, vocabulary)
        yield sample, data[index]


def score(metric, data, **options):
    metric.dataset_meta = data.metainfo
    samples = [sample.to_dict() for sample, _ in answers(data, **options)]
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('kind', ['segm', 'bbox'])
def test_mmdets_coco_metric_reads_instances(data, scenes, kind):
    from mmdet.evaluation import CocoMetric

    def ap(**options):
        metric = CocoMetric(ann_file=str(scenes / 'annotations/instances_val.json'), metric=kind)
        return score(metric, data, **options)

    perfect = ap()
    assert perfect[f'coco/{kind}_mAP'] == perfect[f'coco/{kind}_mAP_75'] == 1.0
    # the right class is still among the hundred pairs, behind all others
    assert ap(shift=1)[f'coco/{kind}_mAP'] < 0.3


def test_mmdets_panoptic_metric_reads_segments(data, scenes):
    pytest.importorskip('panopticapi')
    from mmdet.evaluation import CocoPanopticMetric

    def pq(**options):
        metric = CocoPanopticMetric(
            ann_file=str(scenes / 'annotations/panoptic_val.json'), seg_prefix=str(scenes / 'annotations/panoptic_val')
        )
        return score(metric, data, **options)

    perfect = pq()
    assert perfect['coco_panoptic/PQ'] == perfect['coco_panoptic/PQ_th'] == perfect['coco_panoptic/PQ_st'] == 100.0
    assert pq(shift=1)['coco_panoptic/PQ'] < 10


def test_mmsegs_and_mmdets_iou_read_the_semantic_result(data):
    pytest.importorskip('mmseg')
    from mmdet.evaluation import SemSegMetric
    from mmseg.evaluation import IoUMetric

    for kind, where in ((IoUMetric, 'data'), (SemSegMetric, 'sem_seg')):
        for shift, best in ((0, True), (1, False)):
            metric = kind(iou_metrics=['mIoU'])
            metric.dataset_meta = data.metainfo
            for sample, item in answers(data, shift):
                truth = torch.from_numpy(item['gt_seg_map'])[None].long()
                metric.process({}, [dict(sample.to_dict(), gt_sem_seg={where: truth}, img_path=sample.img_path)])
            found = metric.evaluate(len(data))
            assert found['mIoU'] == 100.0 if best else found['mIoU'] < 5


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def test_mmdets_visualizer_draws_the_results(data, picture, tmp_path):
    from mmdet.visualization import DetLocalVisualizer

    visualizer = DetLocalVisualizer(name='results-det', save_dir=str(tmp_path))
    visualizer.dataset_meta = data.metainfo
    sample = next(iter(answers(data)))[0]
    seen = []
    for field in ('pred_instances', 'pred_panoptic_seg', 'pred_sem_seg'):
        one = DetDataSample(metainfo=sample.metainfo)
        one.set_field(sample.get(field), field)
        visualizer.add_datasample('one', picture, one, draw_gt=False, out_file=str(tmp_path / f'{field}.png'))
        drawn = cv2.imread(str(tmp_path / f'{field}.png'))
        assert drawn.shape == picture.shape and (drawn[..., ::-1] != picture).any(-1).mean() > 0.02
        seen.append(drawn)
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])
    visualizer.add_datasample('all', picture, sample, draw_gt=False, out_file=str(tmp_path / 'all.png'))


def test_nothing_found_is_drawn_too(data, picture, tmp_path):
    """A model that has learned nothing yet finds nothing, and mmdet's hook draws that as well."""
    from mmdet.visualization import DetLocalVisualizer

    visualizer = DetLocalVisualizer(name='results-none', save_dir=str(tmp_path))
    visualizer.dataset_meta = data.metainfo
    vocabulary = Vocabulary.parse('toyscenes')
    log_probs = torch.full((5, len(vocabulary) + 1), -SURE)
    log_probs[:, -1] = SURE
    sample = DetDataSample(metainfo=dict(img_id=0, img_path='', ori_shape=SIZE, img_shape=SIZE))
    Results(instance=False, semantic=False).write(sample, log_probs.log_softmax(-1), torch.zeros(5, *SIZE), SIZE, vocabulary)
    assert sample.pred_panoptic['segments'] == []
    visualizer.add_datasample('none', picture, sample, draw_gt=False, out_file=str(tmp_path / 'none.png'))
    assert np.array_equal(cv2.imread(str(tmp_path / 'none.png'))[..., ::-1], picture)
    with pytest.raises(ValueError, match='at least one array'):  # else compat.let_mmdet_draw_nothing is not needed any more
        DetLocalVisualizer._draw_panoptic_seg.__wrapped__(
            visualizer, picture, sample.pred_panoptic_seg, data.metainfo['classes'], data.metainfo['palette']
        )


def test_mmsegs_visualizer_draws_the_semantic_result(data, picture, tmp_path):
    pytest.importorskip('mmseg')
    from mmseg.visualization import SegLocalVisualizer

    visualizer = SegLocalVisualizer(name='results-seg', save_dir=str(tmp_path), alpha=1.0)
    visualizer.dataset_meta = data.metainfo
    sample = next(iter(answers(data)))[0]
    visualizer.add_datasample('one', picture, sample, draw_gt=False, with_labels=False, out_file=str(tmp_path / 'a.png'))
    drawn = cv2.imread(str(tmp_path / 'a.png'))[..., ::-1]
    palette = np.array(data.metainfo['palette'])
    assert np.array_equal(drawn, palette[sample.pred_sem_seg.data[0].numpy()])


def test_instances_of_the_file_and_of_the_answer_are_the_same_things(data, scenes):
    """The two annotation files agree, else a perfect AP would say nothing."""
    content = json.loads((scenes / 'annotations/instances_val.json').read_text())
    per_image = {info['img_id']: 0 for info in (data.get_data_info(i) for i in range(len(data)))}
    for annotation in content['annotations']:
        per_image[annotation['image_id']] += 1
    found = {sample.img_id: int((sample.pred_instances.scores > 0.9).sum()) for sample, _ in answers(data)}
    assert found == per_image and sum(found.values()) > 4
    assert isinstance(next(iter(answers(data)))[0].pred_sem_seg, PixelData)

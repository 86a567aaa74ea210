"""PanopticDataset: labels by name, held-out classes left out, what mmdet's pipeline makes of it."""

import json
import shutil

import cv2
import numpy as np
import pytest

import mmdiffrep  # noqa: F401
from mmdiffrep.datasets.toyscenes import write_toyscenes

pytest.importorskip('mmdet')
from mmdiffrep.datasets import PanopticDataset  # noqa: E402

META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'vocabulary')
PIPELINE = [
    dict(type='mmcv.LoadImageFromFile'),
    dict(type='mmdet.LoadPanopticAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='mmdet.PackDetInputs', meta_keys=META),
]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'scenes'
    return write_toyscenes(out, dict(train=6), (48, 64), seed=3)


def build(root, ann_file='annotations/panoptic_train.json', **options):
    return PanopticDataset(
        data_root=str(root),
        ann_file=str(ann_file),
        data_prefix=dict(img='images/train/', seg='annotations/panoptic_train/'),
        **{'pipeline': PIPELINE, **options},
    )


def truth(root, index):
    """Segment ids (H, W) and the file's segments, read by hand."""
    content = json.loads((root / 'annotations/panoptic_train.json').read_text())
    annotation = content['annotations'][index]
    bgr = cv2.imread(str(root / 'annotations/panoptic_train' / annotation['file_name'])).astype(int)
    names = {category['id']: category['name'] for category in content['categories']}
    ids = bgr[..., 2] + 256 * bgr[..., 1] + 65536 * bgr[..., 0]
    return ids, {s['id']: names[s['category_id']] for s in annotation['segments_info']}


def test_the_files_own_categories_are_the_vocabulary(scenes):
    data = build(scenes)
    data.full_init()
    assert len(data) == 6 and len(data.vocabulary) == 43 and data.vocabulary.num_things == 36
    assert data.metainfo['thing_classes'] == data.vocabulary.names[:36]
    assert len(data.metainfo['palette']) == 43
    json.dumps(data.metainfo)  # plain: checkpoints keep it, and are read with weights_only


@pytest.mark.parametrize('shuffled', [False, True])
def test_labels_are_places_in_the_vocabulary_whatever_its_order(scenes, shuffled):
    """mmdet's own class numbers by the file's order, silently."""
    data = build(scenes)
    data.full_init()
    names = data.vocabulary.names
    if shuffled:
        things, stuff = names[:36][::-1], names[36:][::-1]
        data = build(scenes, vocabulary='; '.join([*things, *(f'{name} (stuff)' for name in stuff)]))
    for index in range(3):
        sample = data[index]['data_samples']
        ids, segments = truth(scenes, index)
        vocabulary = sample.metainfo['vocabulary']
        labels = sample.gt_sem_seg.sem_seg.numpy()[0]
        for number, name in segments.items():
            assert set(np.unique(labels[ids == number])) == {vocabulary.names.index(name)}
        masks = sample.gt_instances.masks.masks
        for mask, label in zip(masks, sample.gt_instances.labels.tolist()):
            (number,) = np.unique(ids[mask.astype(bool)])
            assert segments[int(number)] == vocabulary.names[label]
        assert len(masks) == sum(' ' in name for name in segments.values())  # things have two words


def test_synonyms_are_the_same_class(scenes):
    data = build(scenes, vocabulary='Red-Disc, crimson circle; blue, BLUE  Star; grass, lawn (stuff)')
    data.full_init()
    assert sorted(data.cat2label.values()) == [0, 1, 2]


def test_what_is_held_out_belongs_to_nothing(scenes):
    everything = build(scenes)
    everything.full_init()
    held = ['sky', 'red disc', 'grass']
    data = build(scenes, held_out=held)
    data.full_init()
    assert len(data.vocabulary) == 40 and not set(held) & set(data.vocabulary.names)
    for index in range(6):
        ids, segments = truth(scenes, index)
        labels = data[index]['data_samples'].gt_sem_seg.sem_seg.numpy()[0]
        for number, name in segments.items():
            assert (set(np.unique(labels[ids == number])) == {255}) == (name in held)


def test_a_crowd_is_no_mask_to_learn_and_no_stuff(scenes, tmp_path):
    content = json.loads((scenes / 'annotations/panoptic_train.json').read_text())
    things = {c['id'] for c in content['categories'] if c['isthing']}
    segments = content['annotations'][0]['segments_info']
    crowd = next(s for s in segments if s['category_id'] in things)
    crowd['iscrowd'] = 1
    (tmp_path / 'crowd.json').write_text(json.dumps(content))
    before, after = build(scenes)[0]['data_samples'], build(scenes, tmp_path / 'crowd.json')[0]['data_samples']
    assert len(after.gt_instances.masks.masks) == len(before.gt_instances.masks.masks) - 1
    ids, _ = truth(scenes, 0)
    labels = after.gt_sem_seg.sem_seg.numpy()[0]
    assert labels[ids == crowd['id']].max() < 36  # a thing's label, which is never made a stuff mask


def test_captions_come_with_the_images(scenes):
    data = build(scenes, caption_file='annotations/captions_train.json')
    captions = json.loads((scenes / 'annotations/captions_train.json').read_text())['annotations']
    data.full_init()
    assert data.get_data_info(2)['caption'] == [captions[2]['caption']]


def test_the_vocabulary_is_kept_once(scenes):
    data = build(scenes)
    data.full_init()
    assert 'vocabulary' not in data.load_data_list()[0]
    assert data.get_data_info(0)['vocabulary'] is data.get_data_info(1)['vocabulary']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['annotations'][0]['segments_info'][0].update(category_id=999), 'category_id=999'),
        (lambda c: c.pop('categories'), r"lacks \['categories'\]"),
        (lambda c: [a.pop('segments_info') for a in c['annotations']], 'holds instances, not panoptic segments'),
    ],
)
def test_a_broken_file_is_described(scenes, tmp_path, change, message):
    content = json.loads((scenes / 'annotations/panoptic_train.json').read_text())
    change(content)
    (tmp_path / 'broken.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        build(scenes, tmp_path / 'broken.json').full_init()


def test_wrong_words_are_described(scenes):
    with pytest.raises(ValueError, match='none of its 43 categories'):
        build(scenes, vocabulary='cat; dog')
    with pytest.raises(ValueError, match='teal disc'):
        build(scenes, held_out=['teal disc'])
    with pytest.raises(FileNotFoundError, match='no such file'):
        build(scenes, 'annotations/none.json')


@pytest.mark.parametrize('things', [True, False])
def test_masks_of_another_size_are_described(scenes, tmp_path, things):
    """With things mmdet says nothing but AssertionError, without any it takes them."""
    shutil.copytree(scenes, tmp_path / 'scenes')
    file = tmp_path / 'scenes/annotations/panoptic_train.json'
    content = json.loads(file.read_text())
    annotation = content['annotations'][0]
    if not things:
        stuff = {c['id'] for c in content['categories'] if not c['isthing']}
        annotation['segments_info'] = [s for s in annotation['segments_info'] if s['category_id'] in stuff]
        file.write_text(json.dumps(content))
    masks = tmp_path / 'scenes/annotations/panoptic_train' / annotation['file_name']
    height, width = cv2.imread(str(masks)).shape[:2]
    cv2.imwrite(str(masks), np.zeros((height // 2, width, 3), np.uint8))
    data = build(tmp_path / 'scenes')
    with pytest.raises(ValueError, match=f'{annotation["file_name"]} has {width}×{height // 2} pixels, and its image .* {width}×{height}'):
        data[0]
    assert data[1] is not None

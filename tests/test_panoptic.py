"""Panoptic, semantic and instance results against slow versions; COCO's files; panoptic quality against panopticapi."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmdiffrep.openvocab import panoptic
from mmdiffrep.openvocab.coco_export import (
    coco_segments,
    read_panoptic_png,
    write_panoptic_json,
    write_panoptic_png,
)
from mmdiffrep.openvocab.panoptic import (
    instances,
    mask_boxes,
    merge_panoptic,
    semantic_labels,
    semantic_scores,
    strips,
)

THINGS = [True, True, False, False]


def scene(seed, queries=12, size=(20, 28), classes=4):
    """Blobs with sharp and soft borders, whose classes are clear to unclear."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(
        torch.arange(size[0]).float(), torch.arange(size[1]).float(), indexing='ij'
    )
    centre = torch.rand(queries, 2, generator=g) * torch.tensor(size).float()
    radius = 2 + 6 * torch.rand(queries, generator=g)
    distance = ((y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2).sqrt()
    masks = (radius[:, None, None] - distance) * torch.rand(queries, generator=g)[:, None, None] * 3
    logits = 3 * torch.randn(queries, classes + 1, generator=g)
    return logits.log_softmax(-1), masks


def slow_panoptic(log_probs, mask_logits, things, threshold=0.0, overlap=0.8):
    """Mask2Former's rule, pixel by pixel."""
    probs, masks = log_probs.exp().tolist(), mask_logits.sigmoid().tolist()
    kept = [
        (q, max(p), p.index(max(p)))
        for q, p in enumerate(probs)
        if p.index(max(p)) < len(things) and max(p) > threshold
    ]
    height, width = mask_logits.shape[1:]
    ids = [[0] * width for _ in range(height)]
    pixels = [(y, x) for y in range(height) for x in range(width)]
    owner = {}
    for y, x in pixels:
        values = [score * masks[q][y][x] for q, score, _ in kept]
        if values:
            owner[y, x] = values.index(max(values))
    segments, stuff = [], {}
    for k, (q, score, label) in enumerate(kept):
        mine = [at for at in pixels if owner[at] == k]
        area = sum(masks[q][y][x] >= 0.5 for y, x in pixels)
        final = [(y, x) for y, x in mine if masks[q][y][x] >= 0.5]
        if not final or len(mine) / area < overlap:
            continue
        if not things[label] and label in stuff:
            segment = stuff[label]
        else:
            segment = dict(
                id=len(segments) + 1, category=label, isthing=things[label], score=0, pixels=[]
            )
            segments.append(segment)
            stuff[label] = segment
        segment['score'] = max(segment['score'], score)
        segment['pixels'] += final
        for y, x in final:
            ids[y][x] = segment['id']
    for segment in segments:
        at = segment.pop('pixels')
        ys, xs = [y for y, _ in at], [x for _, x in at]
        segment.update(
            area=len(at), bbox=[min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]
        )
    return ids, segments


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('options', [(0.0, 0.8), (0.5, 0.5), (0.0, 0.0)])
def test_merging_against_a_slow_version(seed, options):
    log_probs, masks = scene(seed)
    ids, segments = merge_panoptic(log_probs, masks, THINGS, *options)
    wanted_ids, wanted = slow_panoptic(log_probs, masks, THINGS, *options)
    assert ids.dtype == torch.int32 and ids.tolist() == wanted_ids
    scores = [s.pop('score') for s in segments]
    assert scores == pytest.approx([s.pop('score') for s in wanted])
    assert segments == wanted
    assert len(segments) > 1


def test_the_rules_by_hand():
    """Four pixels in a row. Two masks of stuff become one; a mask nearly covered by a better one is dropped, and its rest is nothing."""
    log_probs = torch.tensor(
        [[0.1, 0.8, 0.1], [0.1, 0.7, 0.2], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]]
    ).log()
    masks = torch.tensor([[9.0, -9, -9, -9], [-9, 9, -9, -9], [9, 9, 9, -1], [-9, -9, -9, 9]])[
        :, None
    ]
    ids, segments = merge_panoptic(log_probs, masks, [True, False])
    assert ids.tolist() == [
        [1, 1, 0, 0]
    ]  # the third owns the third and, below 0.5, the fourth: 2 of its 3
    assert [(s['category'], s['area'], s['bbox']) for s in segments] == [(1, 2, [0, 0, 2, 1])]
    assert segments[0]['score'] == pytest.approx(0.8)
    ids, segments = merge_panoptic(log_probs, masks, [True, False], overlap_thr=0.5)
    assert ids.tolist() == [[1, 1, 2, 0]]
    ids, segments = merge_panoptic(log_probs, masks, [True, True])
    assert ids.tolist() == [[1, 2, 0, 0]]
    ids, segments = merge_panoptic(log_probs, masks, [True, False], object_mask_thr=0.9)
    assert not ids.any() and segments == []


def test_nothing_and_many_classes():
    void = torch.tensor([[0.1, 0.9]]).log()
    ids, segments = merge_panoptic(void, torch.ones(1, 3, 5), [True])
    assert ids.shape == (3, 5) and not ids.any() and segments == []
    none = merge_panoptic(torch.zeros(0, 3), torch.zeros(0, 3, 5), [True, False], size=(6, 10))
    assert none[0].shape == (6, 10) and none[1] == []
    log_probs = torch.full((3, 1502), -20.0)
    for query, label in enumerate((1500, 999, 1000)):
        log_probs[query, label] = 0
    masks = torch.full((3, 2, 9), -9.0)
    for query in range(3):
        masks[query, :, 3 * query : 3 * query + 3] = 9
    ids, segments = merge_panoptic(log_probs, masks, [True] * 1501)
    assert [s['category'] for s in segments] == [1500, 999, 1000]
    assert ids[0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert merge_panoptic(log_probs, masks - 9.5, [True] * 1501)[1] == []  # no mask reaches a half


@pytest.mark.parametrize('size', [(20, 28), (33, 57), (80, 112), (9, 40)])
def test_strips_are_an_interpolation(size, monkeypatch):
    log_probs, masks = scene(7)
    wanted = F.interpolate(masks[None], size, mode='bilinear', align_corners=False)[0].sigmoid()
    whole = merge_panoptic(log_probs, masks, THINGS, size=size)
    results = [f(log_probs, masks, size=size) for f in (semantic_scores, semantic_labels)]
    objects = instances(log_probs, masks, THINGS, size=size)
    monkeypatch.setattr(panoptic, 'STRIP', len(masks) * size[1] * 4)
    parts = list(strips(masks, size))
    assert [start for start, _, _ in parts] == list(range(0, size[0], 4)) and parts[-1][1] == size[
        0
    ]
    torch.testing.assert_close(torch.cat([p for _, _, p in parts], 1), wanted, atol=1e-5, rtol=0)
    ids, segments = merge_panoptic(log_probs, masks, THINGS, size=size)
    assert torch.equal(ids, whole[0]) and segments == whole[1]
    torch.testing.assert_close(semantic_scores(log_probs, masks, size=size), results[0])
    assert torch.equal(semantic_labels(log_probs, masks, size=size), results[1])
    for key, value in instances(log_probs, masks, THINGS, size=size).items():
        torch.testing.assert_close(value, objects[key])


def test_semantic_against_a_loop():
    log_probs, masks = scene(8)
    wanted = torch.zeros(4, 20, 28)
    for k in range(4):
        for q in range(len(masks)):
            wanted[k] += log_probs[q, k].exp() * masks[q].sigmoid()
    torch.testing.assert_close(semantic_scores(log_probs, masks), wanted)
    assert torch.equal(semantic_labels(log_probs, masks), wanted.argmax(0))


def test_instances_against_a_loop():
    log_probs, masks = scene(9)
    masks[3] = -5  # nowhere above a half
    found = instances(log_probs, masks, THINGS, top=15)
    pairs = sorted(
        ((log_probs[q, k].exp().item(), q, k) for q in range(12) for k in (0, 1)), reverse=True
    )[:15]
    assert found['queries'].tolist() == [q for _, q, _ in pairs] and 3 in found['queries'].tolist()
    assert found['labels'].tolist() == [k for _, _, k in pairs]
    for row, (score, q, _) in enumerate(pairs):
        inside = masks[q].sigmoid() > 0.5
        assert torch.equal(found['masks'][row], inside)
        quality = masks[q].sigmoid()[inside].mean().item() if inside.any() else 0
        assert found['scores'][row].item() == pytest.approx(score * quality, abs=1e-5)
        ys, xs = inside.nonzero(as_tuple=True)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if inside.any() else [0] * 4
        assert found['bboxes'][row].tolist() == [float(v) for v in box]
    assert len(instances(log_probs, masks, THINGS)['scores']) == 24
    stuff_only = instances(log_probs, masks, [False] * 4)
    assert stuff_only['masks'].shape == (0, 20, 28) and stuff_only['bboxes'].shape == (0, 4)
    assert mask_boxes(torch.zeros(0, 3, 3, dtype=torch.bool)).shape == (0, 4)


def test_the_first_of_equals_owns():
    masks = torch.full((3, 2, 2), 4.0)
    log_probs = torch.tensor([[0.2, 0.8, 0], [0.9, 0.1, 0], [0.1, 0.9, 0]]).log().clamp(min=-50)
    ids, segments = merge_panoptic(log_probs, masks, [True, True])
    assert [s['category'] for s in segments] == [0] and (ids == 1).all()
    log_probs = torch.tensor([[0.5, 0.5, 0]]).log().clamp(min=-50).expand(3, -1)
    assert not semantic_labels(log_probs, masks).any()


def test_shape_errors():
    log_probs, masks = scene(0)
    for call in (
        lambda *a: merge_panoptic(*a, THINGS),
        semantic_scores,
        semantic_labels,
        lambda *a: instances(*a, THINGS),
    ):
        with pytest.raises(
            ValueError, match=r'mask_logits \(20, 28\) do not fit; needed: .*\(Q, H, W\)'
        ):
            call(log_probs, masks[0])
        with pytest.raises(ValueError, match='12 classified masks and 11 masks'):
            call(log_probs, masks[1:])
    with pytest.raises(ValueError, match='is_thing has 3 entries for 4 classes'):
        merge_panoptic(log_probs, masks, THINGS[:3])


# ---- COCO's files -----------------------------------------------------------------------------------------------


def test_png_round_trip(tmp_path):
    utils = pytest.importorskip('panopticapi.utils')
    ids = np.array([[0, 1, 255], [256, 70000, 256**3 - 1]], np.int32)
    file = tmp_path / 'deep' / 'a.png'
    write_panoptic_png(file, torch.from_numpy(ids))
    assert np.array_equal(read_panoptic_png(file), ids)
    from PIL import Image

    assert np.array_equal(utils.rgb2id(np.array(Image.open(file))), ids)
    write_panoptic_png(file, ids[:1])  # takes the old one's place
    assert read_panoptic_png(file).shape == (1, 3)
    with pytest.raises(ValueError, match='segment ids from -1 to 5 do not fit'):
        write_panoptic_png(file, ids[:1] * 0 + np.array([-1, 0, 5]))
    with pytest.raises(ValueError, match='segment ids from 0 to 16777216 do not fit'):
        write_panoptic_png(file, np.array([[0, 256**3]]))
    with pytest.raises(ValueError, match=r'float64 \(2, 2\); needed: whole numbers'):
        write_panoptic_png(file, np.zeros((2, 2)))
    assert read_panoptic_png(file).shape == (1, 3) and [f.name for f in file.parent.iterdir()] == [
        'a.png'
    ]
    with pytest.raises(FileNotFoundError, match='no.png: no such file'):
        read_panoptic_png(tmp_path / 'no.png')
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / 'grey.png')
    with pytest.raises(ValueError, match="grey.png has mode 'L'"):
        read_panoptic_png(tmp_path / 'grey.png')


def test_json(tmp_path):
    log_probs, masks = scene(1)
    _, segments = merge_panoptic(log_probs, masks, THINGS)
    names, numbers = ['cat', 'dog', 'sky', 'grass'], [17, 18, 187, 193]
    entry = dict(image_id=7, file_name='7.png', segments=segments)
    write_panoptic_json(
        tmp_path / 'out.json', [entry], names, THINGS, numbers, [dict(id=7, file_name='7.jpg')]
    )
    content = json.loads((tmp_path / 'out.json').read_text())
    assert content['categories'][2] == dict(id=187, name='sky', isthing=0)
    assert content['images'] == [dict(id=7, file_name='7.jpg')]
    written = content['annotations'][0]['segments_info']
    for segment, one in zip(segments, written):
        assert one['category_id'] == numbers[segment['category']] and one['iscrowd'] == 0
        assert all(one[key] == segment[key] for key in ('id', 'area', 'bbox', 'score'))
    assert len(written) == len(segments) and [f.name for f in tmp_path.iterdir()] == ['out.json']
    assert coco_segments([dict(id=1, category=3)]) == [dict(id=1, category_id=3, iscrowd=0)]
    with pytest.raises(ValueError, match='segment 1 has category 4; allowed: 0 to 3'):
        coco_segments([dict(id=1, category=4)], numbers)
    with pytest.raises(ValueError, match='4 names, 4 is_thing and 3 category_ids'):
        write_panoptic_json(tmp_path / 'x.json', [], names, THINGS, numbers[:3])


# ---- panoptic quality -------------------------------------------------------------------------------------------


def random_panoptic(rng, size, classes, count, crowds=False, noise=None):
    """Rectangles over each other, with holes of void; ids far apart. ``noise``: another's map to start from."""
    ids, segments = np.zeros(size, np.int64), {}
    if noise is not None:
        ids, segments = noise['ids'].copy(), {s['id']: dict(s) for s in noise['segments']}
        for segment in segments.values():
            segment.pop('iscrowd', None)
            if rng.random() < 0.2:
                segment['category'] = int(rng.integers(classes))
    for _ in range(count):
        y, x = (int(rng.integers(0, s - 4)) for s in size)
        h, w = (int(rng.integers(3, s // 2)) for s in size)
        id_ = 0 if rng.random() < 0.2 else int(rng.integers(1, 256**3))
        ids[y : y + h, x : x + w] = id_
        segments[id_] = dict(id=id_, category=int(rng.integers(classes)))
        if crowds and rng.random() < 0.3:
            segments[id_]['iscrowd'] = 1
    present = set(np.unique(ids).tolist()) - {0}
    return dict(ids=ids, segments=[s for id_, s in segments.items() if id_ in present])


@pytest.fixture(scope='module')
def pairs():
    rng = np.random.default_rng(5)
    found = []
    for number in range(20):
        size = (24 + number, 30)
        truth = random_panoptic(rng, size, 6, 8, crowds=True)
        found.append((truth, random_panoptic(rng, size, 6, 3, noise=truth)))
    return found


def sample(number, truth, prediction):
    return dict(img_id=number, gt_panoptic=truth, pred_panoptic=prediction)


NAMES = ['ant', 'bee', 'cat', 'sky', 'sea', 'mud', 'none']  # the last occurs nowhere
META = dict(classes=NAMES, thing_classes=NAMES[:3], stuff_classes=NAMES[3:])


@pytest.fixture
def metric():
    from mmdiffrep.registry import METRICS

    def build(meta=META, **options):
        made = METRICS.build(dict(type='mmdiffrep.PanopticQuality', classwise=False, **options))
        made.dataset_meta = meta
        return made

    return build


@pytest.fixture(scope='module')
def panopticapi_results(pairs, tmp_path_factory):
    """What panopticapi computes from files, written by our own writer: per group, and the folder."""
    api = pytest.importorskip('panopticapi.evaluation')
    root = tmp_path_factory.mktemp('coco')
    annotations = {}
    for kind, place in (('truth', 0), ('found', 1)):
        annotations[kind] = []
        for number, pair in enumerate(pairs):
            one, name = pair[place], f'{number}.png'
            write_panoptic_png(root / kind / name, one['ids'])
            for segment in one['segments']:
                segment['area'] = int((one['ids'] == segment['id']).sum())
            annotations[kind].append(
                dict(image_id=number, file_name=name, segments=one['segments'])
            )
        write_panoptic_json(
            root / f'{kind}.json',
            annotations[kind],
            NAMES[:6],
            [True] * 3 + [False] * 3,
            range(11, 17),
        )
    files = [json.loads((root / f'{kind}.json').read_text()) for kind in ('truth', 'found')]
    categories = {c['id']: c for c in files[0]['categories']}
    matched = list(zip(files[0]['annotations'], files[1]['annotations']))
    with contextlib.redirect_stdout(io.StringIO()):
        stat = api.pq_compute_single_core(
            0, matched, str(root / 'truth'), str(root / 'found'), categories
        )
    groups = {'': None, '_th': True, '_st': False}
    values = {group: stat.pq_average(categories, thing)[0] for group, thing in groups.items()}
    return root, stat, values


def test_image_statistics_are_panopticapis(pairs, panopticapi_results):
    from mmdiffrep.evaluation.pq import image_statistics

    _, stat, _ = panopticapi_results
    total = sum(image_statistics(*pair, 6) for pair in pairs)
    wanted = [[getattr(stat[11 + k], key) for key in ('iou', 'tp', 'fp', 'fn')] for k in range(6)]
    np.testing.assert_allclose(total, np.array(wanted, float))
    assert (total[:, 1:] > 0).all()  # the case is no easy one
    assert any(s.get('iscrowd') for truth, _ in pairs for s in truth['segments'])


def test_the_metric_is_panopticapis(pairs, panopticapi_results, metric):
    root, _, wanted = panopticapi_results
    for options in (
        {},
        dict(ann_file=str(root / 'truth.json'), seg_prefix=str(root / 'truth')),
        dict(ann_file=str(root / 'truth.json')),
    ):
        made = metric(**options)
        for number, pair in enumerate(pairs):
            one = sample(number, *pair)
            if options:
                del one['gt_panoptic']
            made.process(None, [one])
        found = made.evaluate(len(pairs))
        for group, values in wanted.items():
            for key in ('PQ', 'SQ', 'RQ'):
                assert found[f'panoptic/{key}{group}'] == pytest.approx(100 * values[key.lower()])
        assert set(found) == {f'panoptic/{k}{g}' for k in ('PQ', 'SQ', 'RQ') for g in wanted}


@pytest.mark.parametrize(
    'options',
    [
        dict(unseen=['bee', 'sea', 'none']),
        dict(seen_in='ant, emmet; CAT; sky (stuff); the mud, mud (stuff)'),
    ],
)
def test_seen_and_unseen(pairs, metric, options):
    from mmdiffrep.evaluation.pq import image_statistics, per_class

    made = metric(**options)
    made.process(None, [sample(number, *pair) for number, pair in enumerate(pairs)])
    found = made.evaluate(len(pairs))
    pq = 100 * per_class(sum(image_statistics(*pair, 7) for pair in pairs))[:, 0]
    groups = dict(
        seen=[0, 2, 3, 5],
        unseen=[1, 4],
        th_seen=[0, 2],
        th_unseen=[1],
        st_seen=[3, 5],
        st_unseen=[4],
    )
    for group, members in groups.items():
        assert found[f'panoptic/PQ_{group}'] == pytest.approx(pq[members].mean())
    assert found['panoptic/PQ'] == pytest.approx(pq[:6].mean())


def test_the_table(pairs, metric, monkeypatch):
    from mmdiffrep.evaluation import panoptic_quality

    made = metric(unseen=['bee'])
    made.classwise, said = True, []
    monkeypatch.setattr(panoptic_quality, 'print_log', lambda text, logger: said.append(text))
    made.process(None, [sample(number, *pair) for number, pair in enumerate(pairs)])
    made.evaluate(len(pairs))
    (text,) = said
    lines = {line.split('│')[1].strip(): line for line in text.splitlines() if '│' in line}
    assert set(lines) == {'ant', 'bee', 'cat', 'sky', 'sea', 'mud'}
    assert (
        'unseen thing' in lines['bee'] and 'unseen' not in lines['ant'] and 'stuff' in lines['sky']
    )


def test_a_perfect_prediction_and_nothing(metric):
    ids = np.array([[1, 1, 2], [0, 2, 2]])
    truth = dict(ids=ids, segments=[dict(id=1, category=0), dict(id=2, category=3)])
    made = metric()
    made.process(
        None,
        [
            sample(
                0,
                truth,
                dict(
                    ids=torch.from_numpy(ids + 7),
                    segments=[dict(id=k, category=c) for k, c in ((7, 5), (8, 0), (9, 3))],
                ),
            )
        ],
    )
    found = made.evaluate(1)
    assert (
        found['panoptic/PQ_th'] == 100 and found['panoptic/PQ_st'] == 100
    )  # what lies in void is no mistake
    made.process(None, [sample(0, truth, dict(ids=0 * ids, segments=[]))])
    assert made.evaluate(1) == {
        f'panoptic/{k}{g}': 0 for k in ('PQ', 'SQ', 'RQ') for g in ('', '_th', '_st')
    }
    made.process(None, [sample(0, dict(ids=0 * ids, segments=[]), dict(ids=0 * ids, segments=[]))])
    assert all(np.isnan(v) for v in made.evaluate(1).values())


def test_categories_of_files(tmp_path, metric):
    """By name, synonyms too; those of no class are void."""
    write_panoptic_png(tmp_path / 'gt' / '0.png', np.array([[1, 1, 2, 2]]))
    segments = [dict(id=1, category=0), dict(id=2, category=1)]
    entry = dict(image_id='a', file_name='0.png', segments=segments)
    write_panoptic_json(
        tmp_path / 'gt.json', [entry], ['Kitten', 'dirt_road'], [True, False], [5, 9]
    )
    prediction = dict(ids=np.array([[3, 3, 3, 0]]), segments=[dict(id=3, category=0)])

    def evaluate(meta, **options):
        made = metric(
            meta, ann_file=str(tmp_path / 'gt.json'), seg_prefix=str(tmp_path / 'gt'), **options
        )
        made.process(None, [dict(img_id='a', pred_panoptic=prediction)])
        return made.evaluate(1)

    found = evaluate(dict(classes=['kitten', 'dirt-road']))
    assert found['panoptic/PQ_th'] == pytest.approx(100 * 2 / 3) and found['panoptic/PQ_st'] == 0
    assert evaluate(dict(classes=['kitten']))['panoptic/PQ'] == 100  # the road is void
    assert evaluate(None, vocabulary='cat, kitten; tree')['panoptic/PQ'] == 100
    with pytest.raises(
        ValueError, match=r"none of its categories \(\['Kitten', 'dirt_road'\].* is a class"
    ):
        evaluate(dict(classes=['dog']))
    with pytest.raises(ValueError, match="has no annotation of image 'b'"):
        metric(
            dict(classes=['kitten']),
            ann_file=str(tmp_path / 'gt.json'),
            seg_prefix=str(tmp_path / 'gt'),
        ).process(None, [dict(img_id='b', pred_panoptic=prediction)])
    content = json.loads((tmp_path / 'gt.json').read_text())
    content['annotations'][0]['segments_info'][1]['category_id'] = 6
    (tmp_path / 'gt.json').write_text(json.dumps(content))
    with pytest.raises(
        ValueError,
        match="segment 2 of 0.png has category_id=6, which is none of the file's 2 categories",
    ):
        evaluate(dict(classes=['kitten']))
    (tmp_path / 'gt.json').write_text(
        '{"annotations": [{"image_id": 1, "bbox": []}], "categories": []}'
    )
    with pytest.raises(ValueError, match='holds no panoptic annotations'):
        evaluate(dict(classes=['kitten']))
    with pytest.raises(FileNotFoundError, match='no.json: no such file'):
        metric(ann_file=str(tmp_path / 'no.json'))
    (tmp_path / 'lone.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match='lone: no such folder .*give seg_prefix'):
        metric(ann_file=str(tmp_path / 'lone.json'))


def test_names_as_data_sets_write_them(tmp_path, metric):
    """'wall-other-merged' of the file is 'wall' of a vocabulary, and of what training saw."""
    names = ['cat', 'wall-other-merged', 'wall-brick', 'mirror', 'mirror-stuff']
    write_panoptic_png(tmp_path / 'gt' / '0.png', np.array([[1, 1, 2, 2, 3, 4, 5, 5]]))
    segments = [dict(id=k + 1, category=k) for k in range(5)]
    entry = dict(image_id=0, file_name='0.png', segments=segments)
    write_panoptic_json(tmp_path / 'gt.json', [entry], names, [True, False, False, True, False])
    content = json.loads((tmp_path / 'gt.json').read_text())
    raw = dict(classes=names, thing_classes=['cat', 'mirror'])
    for meta, options, order in (
        (raw, {}, range(5)),
        (None, dict(vocabulary=content['categories']), (0, 2, 3, 1, 4)),  # things first
        (None, dict(vocabulary=raw), (0, 2, 3, 1, 4)),
    ):
        for split in (
            dict(seen_in=dict(classes=['cat', 'wall-brick'])),
            dict(unseen=['mirror', 'wall-other-merged', 'mirror-stuff']),
        ):
            made = metric(meta, ann_file=str(tmp_path / 'gt.json'), **options, **split)
            given = [dict(id=k + 1, category=order[k]) for k in (0, 1)]
            made.process(
                None,
                [
                    dict(
                        img_id=0,
                        pred_panoptic=dict(
                            ids=np.array([[1, 1, 2, 2, 0, 0, 0, 0]]), segments=given
                        ),
                    )
                ],
            )
            found = made.evaluate(1)
            wanted = dict(
                PQ=40,
                PQ_th=50,
                PQ_st=100 / 3,
                PQ_th_seen=100,
                PQ_st_seen=0,
                PQ_st_unseen=50,
                PQ_th_unseen=0,
            )
            for group, value in wanted.items():
                assert found[f'panoptic/{group}'] == pytest.approx(value), (options, split, group)


def test_metric_errors(metric):
    ids = np.array([[1, 1, 2]])
    good = dict(ids=ids, segments=[dict(id=1, category=0), dict(id=2, category=3)])

    def process(truth, prediction, **options):
        metric(**options).process(None, [sample(4, truth, prediction)])

    cases = [
        (
            good,
            dict(good, ids=ids[:, :2]),
            r'image 4: the prediction has 1 x 2 pixels, the ground truth 1 x 3.*ori_shape',
        ),
        (
            good,
            dict(good, ids=ids * 3),
            r'image 4, prediction: pixels have the ids \[3, 6\], which no segment has',
        ),
        (
            dict(good, segments=[]),
            good,
            r'image 4, ground truth: pixels have the ids \[1, 2\], .*category is unknown',
        ),
        (
            good,
            dict(good, segments=[*good['segments'], dict(id=9, category=1)]),
            r'predicted segments \[9\] have no pixels',
        ),
        (
            good,
            dict(ids=ids, segments=[dict(id=1), dict(id=2, category=0)]),
            'segment 1 has category None; needed',
        ),
        (
            good,
            dict(ids=ids, segments=[dict(id=1, category=7)]),
            'segment 1 has category 7; needed: .*0 to 6',
        ),
        (good, dict(good, ids=ids[0]), r'ids are int64 of shape \(3,\)'),
        (good, dict(good, ids=ids / 1), 'ids are float64'),
    ]
    for truth, prediction, message in cases:
        with pytest.raises(ValueError, match=message):
            process(truth, prediction)
    with pytest.raises(ValueError, match=r"needs pred_panoptic, a sample has \['img_id'\]"):
        metric().process(None, [dict(img_id=1)])
    with pytest.raises(ValueError, match='image 1 has no gt_panoptic, and no ann_file'):
        metric().process(None, [dict(img_id=1, pred_panoptic=good)])
    with pytest.raises(ValueError, match='knows no classes'):
        metric(None).process(None, [sample(0, good, good)])
    with pytest.raises(ValueError, match='give one of them'):
        metric(unseen=[], seen_in='cat')
    for meta, options, message in (
        (META, dict(unseen=['bea']), r"unseen has \['bea'\], which are not among the 7 classes"),
        (dict(classes=NAMES), {}, 'cannot tell things from stuff'),
    ):
        made = metric(meta, **options)
        made.process(None, [sample(0, good, good)])
        with pytest.raises(ValueError, match=message):
            made.evaluate(1)

"""Matcher, keypoints, videos: layouts as their authors pack them, metrics by hand, photographs under known transforms."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

import mmdiffrep  # noqa: F401
from mmdiffrep.apis import Matcher
from mmdiffrep.datasets import CUBPairs, DavisDataset, HPatchesDataset
from mmdiffrep.evaluation import HomographyAccuracy, RegionAndContour
from mmdiffrep.evaluation.region_contour import contour, region
from mmdiffrep.matching.components import principal_components, shared_components
from mmdiffrep.matching.homography import corner_error
from mmdiffrep.matching.keypoints import detect
from mmdiffrep.models.adapters import LayerMixing
from mmdiffrep.models.backbones import DenseSift
from mmdiffrep.registry import MODELS
from mmdiffrep.structures import VideoSample
from mmdiffrep.visualization.matches import draw_flow

RAW = dict(type='mmdiffrep.RawPixels', strides=[1])
SIFT = dict(type='mmdiffrep.DenseSift', stride=4)


def texture(size=(96, 120), seed=0):
    """A picture with something at every place, RGB."""
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (size[0] // 6, size[1] // 6, 3), dtype=np.uint8)
    fine = draws.integers(-40, 40, (*size, 3))
    return (cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC) + fine).clip(0, 255).astype(np.uint8)


def as_tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def loader(**dataset):
    return dict(
        batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='pseudo_collate'), dataset=dataset,
    )  # fmt: skip


def evaluate(model, dataset, metric, folder):
    runner = Runner(model, str(folder), test_dataloader=loader(**dataset), test_cfg=dict(), experiment_name='test', test_evaluator=metric)
    return runner.test()


# ---- homographies ---------------------------------------------------------------------------------------------


def warp(image, matrix):
    return cv2.warpPerspective(image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


TILT = np.array([[0.98, 0.06, 3.0], [-0.05, 1.01, 2.0], [1e-4, -5e-5, 1.0]])


@pytest.fixture
def hpatches(tmp_path):
    """Two sequences: the view changes, the light changes. BGR files."""
    for name, matrix in (('v_wall', TILT), ('i_wall', np.eye(3)), ('i_dc', np.eye(3))):
        folder = tmp_path / 'hpatches' / name
        folder.mkdir(parents=True)
        image = texture((120, 160))
        cv2.imwrite(str(folder / '1.ppm'), image)
        for k in range(2, 7):
            cv2.imwrite(str(folder / f'{k}.ppm'), warp(image, matrix) if name[0] == 'v' else (image * 0.8).astype(np.uint8))
            np.savetxt(folder / f'H_1_{k}', matrix)
    return tmp_path / 'hpatches'


def test_hpatches_through_the_runner(hpatches, tmp_path):
    model = dict(type='mmdiffrep.HomographyMatcher', backbone=SIFT, detector='corners', count=200, method='ransac')
    found = evaluate(model, dict(type='mmdiffrep.HPatchesDataset', data_root=str(hpatches)), dict(type='mmdiffrep.HomographyAccuracy'), tmp_path / 'run')
    assert found['homography/corners<=5px'] == 100  # i_dc is one of the eight that are left out
    assert found['homography/illumination/corners<=1px'] == 100 and found['homography/viewpoint/corners<=5px'] == 100
    assert found['homography/matches'] > 20


def test_hpatches_resized_and_with_keypoints_of_ones_own(hpatches, tmp_path):
    points = np.array([[10.0, 20.0, 0.9], [30.0, 40.0, 0.8]])
    for k in range(1, 7):
        (tmp_path / 'keys/v_wall').mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f'keys/v_wall/{k}.npy', points)
    data = HPatchesDataset(hpatches, kinds=('viewpoint',), resize=(60, 320), keypoints=tmp_path / 'keys')
    assert len(data) == 5
    item = data[0]
    sample = item['data_samples']
    assert item['inputs']['source'].shape == (3, 60, 320)
    assert torch.allclose(sample.source_points[0], torch.tensor([20.5, 9.75]))
    # a point of the first image goes to the same place of the second, whatever the size
    x = TILT @ [50, 70, 1]
    wanted = ((x[0] / x[2] + 0.5) * 2 - 0.5, (x[1] / x[2] + 0.5) / 2 - 0.5)
    y = np.array(sample.homography) @ [50.5 * 2 - 0.5, 70.5 / 2 - 0.5, 1]
    assert np.allclose(y[:2] / y[2], wanted)
    model = MODELS.build(dict(type='mmdiffrep.HomographyMatcher', backbone=SIFT))
    found = model.match(item['inputs']['source'], item['inputs']['target'], sample.source_points, sample.target_points)
    assert set(map(tuple, found.source.tolist())) <= set(map(tuple, sample.source_points.tolist()))
    assert model.homography(found) is None  # two points fix none


def test_hpatches_that_lacks_something(hpatches, tmp_path):
    with pytest.raises(FileNotFoundError, match='unpack hpatches'):
        HPatchesDataset(tmp_path)
    with pytest.raises(ValueError, match="kinds=.'light'."):
        HPatchesDataset(hpatches, kinds=('light',))
    with pytest.raises(FileNotFoundError, match='no keypoints of this image'):
        HPatchesDataset(hpatches, keypoints=tmp_path)[0]
    (hpatches / 'i_wall/H_1_2').write_text('1 2 3')
    with pytest.raises(ValueError, match='H_1_2 holds no 3 × 3'):
        HPatchesDataset(hpatches)[0]
    (hpatches / 'i_wall/3.ppm').unlink()
    with pytest.raises(FileNotFoundError, match='3.ppm'):
        HPatchesDataset(hpatches)[1]


def test_homography_accuracy_by_hand():
    """Shifted by 2 and 4 pixels, and none found."""

    def sample(shift, kind):
        found = None if shift is None else [[1, 0, shift], [0, 1, 0], [0, 0, 1]]
        return dict(pred_homography=found, homography=np.eye(3).tolist(), source_shape=(10, 20), kind=kind, pred_scores=[0] * 8)

    metric = HomographyAccuracy(thresholds=[1, 3, 5])
    metric.process({}, [sample(2, 'viewpoint'), sample(4, 'illumination'), sample(None, 'illumination')])
    found = metric.compute_metrics(metric.results)
    assert [found[f'corners<={k}px'] for k in (1, 3, 5)] == pytest.approx([0, 100 / 3, 200 / 3])
    assert found['illumination/corners<=5px'] == 50 and found['viewpoint/corners<=3px'] == 100 and found['matches'] == 8
    with pytest.raises(ValueError, match=r'thresholds=\[0\]'):
        HomographyAccuracy([0])


@pytest.mark.parametrize('name', ['astronaut', 'coffee'])
def test_warped_photographs(name):
    """A photograph's homography is found to within a pixel at its corners, by features of the network that ships."""
    image = getattr(pytest.importorskip('skimage.data'), name)()
    image = cv2.resize(image, (320, 256), interpolation=cv2.INTER_AREA)
    other = warp(image, TILT)
    matcher = Matcher('dift_natural-unet_toyscenes-128x128')
    matrix, found, agree = matcher.homography(image, other, 'usac', count=600)
    assert corner_error(matrix, TILT, image.shape[:2]) < 1
    assert agree.sum() > 30 and len(found.scores) == len(agree)


@pytest.mark.parametrize('detector', ['sift', 'orb', 'corners', 'grid'])
def test_keypoints(detector):
    image = texture()
    points = detect(image, detector, 50)
    assert 4 <= len(points) <= 60 and points.shape[1] == 2
    assert points.min() >= 0 and (points <= torch.tensor([119.0, 95.0])).all()
    assert torch.equal(points, detect(image, detector, 50))
    flat = np.zeros((40, 40, 3), np.uint8)
    assert detector == 'grid' or len(detect(flat, detector)) == 0
    with pytest.raises(ValueError, match="detector='fast'"):
        detect(image, 'fast')


# ---- videos ---------------------------------------------------------------------------------------------------


@pytest.fixture
def davis(tmp_path):
    """A red and a green square that move over grey noise for six frames."""
    root = tmp_path / 'DAVIS'
    for part in ('JPEGImages/480p/move', 'Annotations/480p/move', 'ImageSets/2017'):
        (root / part).mkdir(parents=True)
    (root / 'ImageSets/2017/val.txt').write_text('move\n')
    draws = np.random.default_rng(0)
    for k in range(6):
        image = draws.integers(100, 130, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        for number, (y, x, colour) in enumerate(((8, 4 + 4 * k, (220, 20, 20)), (28, 40 - 4 * k, (20, 220, 20))), 1):
            image[y : y + 12, x : x + 12] = colour
            mask[y : y + 12, x : x + 12] = number
        Image.fromarray(image).save(root / f'JPEGImages/480p/move/{k:05d}.jpg', quality=95)
        picture = Image.fromarray(mask).convert('P')
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(root / f'Annotations/480p/move/{k:05d}.png')
    return root


def test_davis_through_the_runner(davis, tmp_path):
    model = dict(type='mmdiffrep.LabelPropagator', backbone=dict(type='mmdiffrep.RawPixels', strides=[2]), topk=5, temperature=0.05)
    found = evaluate(model, dict(type='mmdiffrep.DavisDataset', data_root=str(davis)), dict(type='mmdiffrep.RegionAndContour'), tmp_path / 'run')
    assert found['davis/J'] > 80 and found['davis/F'] > 90
    assert found['davis/J&F'] == pytest.approx((found['davis/J'] + found['davis/F']) / 2)


def test_masks_are_saved_as_davis_takes_them(davis, tmp_path):
    from mmdiffrep.datasets.davis import read_mask
    from mmdiffrep.engine.hooks import SaveMasksHook

    sample = DavisDataset(davis)[0]['data_samples']
    true = [read_mask(path) for path in sample.masks]
    sample.set_metainfo(dict(pred_masks=true))
    SaveMasksHook(tmp_path / 'out', frames=3).after_test_iter(None, 0, None, [sample])
    written = sorted((tmp_path / 'out/move').iterdir())
    assert [p.name for p in written] == [f'{k:05d}.png' for k in range(6)]
    assert all(np.array_equal(read_mask(p), m) for p, m in zip(written, true))
    assert Image.open(written[0]).mode == 'P' and (tmp_path / 'out/move.png').is_file()
    with pytest.raises(ValueError, match='leave the hook out'):
        SaveMasksHook(tmp_path).after_test_iter(None, 0, None, [VideoSample()])


def test_davis_that_lacks_something(davis):
    with pytest.raises(FileNotFoundError, match=r"splits found: \['val'\]"):
        DavisDataset(davis, 'test-dev')
    with pytest.raises(ValueError, match=r"lists none of the videos \['dog'\]"):
        DavisDataset(davis, videos=['dog'])
    with pytest.raises(FileNotFoundError, match='0 frames and 0 masks at Full-Resolution'):
        DavisDataset(davis, resolution='Full-Resolution')
    (davis / 'Annotations/480p/move/00005.png').unlink()
    with pytest.raises(ValueError, match='6 frames and 5 masks'):
        DavisDataset(davis)
    model = MODELS.build(dict(type='mmdiffrep.LabelPropagator', backbone=RAW))
    frame = torch.zeros(3, 8, 9)
    for mask in (np.ones((8, 8), int), np.zeros((8, 9), int)):
        with pytest.raises(ValueError, match='objects numbered from 1'):
            list(model.propagate([frame], mask))
    with pytest.raises(ValueError, match='topk=0'):
        MODELS.build(dict(type='mmdiffrep.LabelPropagator', backbone=RAW, topk=0))


def slow_contour(found, true, tolerance):
    """The F-measure with a loop over all pairs of contour pixels."""

    def edge(mask):
        h, w = mask.shape
        return [
            (y, x) for y in range(h) for x in range(w)
            if any(mask[y, x] != mask[min(y + dy, h - 1), min(x + dx, w - 1)] for dy, dx in ((0, 1), (1, 0), (1, 1)))
        ]  # fmt: skip

    a, b = edge(found), edge(true)
    if not a or not b:
        return float(not a and not b)
    limit = int(np.ceil(tolerance * np.hypot(*true.shape)))

    def near(ones, others):
        return np.mean([any((y - v) ** 2 + (x - u) ** 2 <= limit**2 for v, u in others) for y, x in ones])

    precision, recall = near(a, b), near(b, a)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_regions_and_contours_against_loops():
    draws = np.random.default_rng(0)
    for seed in range(20):
        found, true = (cv2.resize(draws.random((5, 6)), (23, 17)) > 0.5 for _ in range(2))
        assert contour(found, true, None, 0.05) == pytest.approx(slow_contour(found, true, 0.05)), seed
        both = sum(bool(f and t) for f, t in zip(found.flat, true.flat))
        either = sum(bool(f or t) for f, t in zip(found.flat, true.flat))
        assert region(found, true) == pytest.approx(both / either)
    empty = np.zeros((5, 5), bool)
    some = empty.copy()
    some[1:3, 1:3] = True
    assert region(empty, empty) == 1 and contour(empty, empty) == 1
    assert contour(some, empty) == 0 and contour(empty, some) == 0
    void = np.ones((5, 5), bool)
    assert region(some, empty, void) == 1  # nothing counts


def test_the_first_and_last_frames_do_not_count(davis):
    """As in DAVIS 2017's own evaluation; each object counts alike."""
    from mmdiffrep.datasets.davis import read_mask

    sample = dict(DavisDataset(davis)[0]['data_samples'].metainfo_items())
    true = [read_mask(path) for path in sample['masks']]
    wrong = [np.zeros_like(true[0]), *true[1:-1], np.zeros_like(true[0])]
    metric = RegionAndContour()
    metric.process({}, [{**sample, 'pred_masks': wrong}])
    assert metric.compute_metrics(metric.results)['J&F'] == 100
    one = [np.where(m == 1, m, 0) for m in true]
    metric = RegionAndContour()
    metric.process({}, [{**sample, 'pred_masks': one}])
    assert metric.compute_metrics(metric.results)['J'] == 50
    with pytest.raises(ValueError, match='6 frames, and 5 were predicted'):
        metric.process({}, [{**sample, 'pred_masks': one[1:]}])


# ---- birds ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cub(tmp_path):
    root = tmp_path / 'CUB'
    (root / 'parts').mkdir(parents=True)
    images = ['001.Crow/a.jpg', '001.Crow/b.jpg', '002.Owl/c.jpg', '002.Owl/d.jpg', '002.Owl/e.jpg']
    for name in images:
        (root / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / 'images' / name), texture((30, 40)))
    write = lambda name, rows: (root / name).write_text('\n'.join(' '.join(map(str, row)) for row in rows))  # noqa: E731
    write('images.txt', enumerate(images, 1))
    write('classes.txt', [(1, '001.Crow'), (2, '002.Owl')])
    write('image_class_labels.txt', [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)])
    write('train_test_split.txt', [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1)])
    write('bounding_boxes.txt', [(k, 1.0, 2.0, 20.0, 10.0) for k in range(1, 6)])
    write('parts/part_locs.txt', [(k, part, 3.0 * part, 4.0 + k, int(part != k)) for k in range(1, 6) for part in (1, 2, 3)])
    return root


def test_birds(cub):
    data = CUBPairs(cub, count=20)
    assert len(data) == 20
    for pair in data.pairs:
        assert pair['source'].split('/')[0] == pair['target'].split('/')[0] == pair['category']
        assert 'e.jpg' not in pair['source'] + pair['target'] and pair['source'] != pair['target']
        assert pair['target_box'] == [1.0, 2.0, 21.0, 12.0]
    crow = next(p for p in data.pairs if p['source'].endswith('a.jpg'))
    assert crow['source_points'] == [[9.0, 5.0]] and crow['target_points'] == [[9.0, 6.0]]  # 1 and 2 are hidden in one of them
    assert CUBPairs(cub, count=20).pairs == data.pairs != CUBPairs(cub, count=20, seed=1).pairs
    assert any(p['source'][:3] != p['target'][:3] for p in CUBPairs(cub, count=20, same_class=False).pairs)
    assert data[0]['inputs']['source'].shape == (3, 30, 40)
    with pytest.raises(FileNotFoundError, match='unpack CUB'):
        CUBPairs(cub / 'images')
    with pytest.raises(ValueError, match="split='val'"):
        CUBPairs(cub, 'val')
    (cub / 'bounding_boxes.txt').write_text('1 2 3')
    with pytest.raises(ValueError, match='bounding_boxes.txt, line 1, has 3 columns'):
        CUBPairs(cub)


# ---- features -------------------------------------------------------------------------------------------------


def test_components_that_a_pair_shares():
    g = torch.Generator().manual_seed(0)
    maps = [torch.randn(6, 3, 4, generator=g), torch.randn(6, 5, 2, generator=g)]
    reduced = shared_components(maps, 2)
    assert [tuple(m.shape) for m in reduced] == [(2, 3, 4), (2, 5, 2)]
    rows = torch.cat([m.flatten(1).t() for m in maps]).double()
    _, _, v = np.linalg.svd((rows - rows.mean(0)).numpy(), full_matrices=False)
    want = (rows - rows.mean(0)).numpy() @ v[:2].T
    got = torch.cat([m.flatten(1).t() for m in reduced]).numpy()
    assert np.allclose(np.abs(got), np.abs(want), atol=1e-5)
    assert torch.allclose(shared_components(maps, 99)[0].norm(dim=0), (maps[0] - rows.mean(0)[:, None, None]).norm(dim=0).float(), atol=1e-5)
    with pytest.raises(ValueError, match='count=0'):
        shared_components(maps, 0)
    assert principal_components(rows, 2)[1].shape == (2, 6)


def test_each_tap_is_reduced_with_its_pair(tiny_config):
    denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0)
    backbone = dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['down_blocks.0', 'up_blocks.1'], timesteps=0)
    model = MODELS.build(dict(type='mmdiffrep.PointMatcher', backbone=backbone, components=3))
    images = [as_tensor(texture((24, 32), seed)) for seed in (0, 1)]
    a, b = model.of_images(images)
    assert a.shape[0] == 6
    raw = [model._maps_of(image, None) for image in images]
    for k in (0, 1):
        want = F.normalize(shared_components([m[k][0] for m in raw], 3)[0], dim=0)
        got = a[3 * k : 3 * k + 3]
        if got.shape == want.shape:
            assert torch.allclose(got, want, atol=1e-5)
    assert (model.match(images[0], images[0], [[6.0, 9.0]]).points - torch.tensor([[6.0, 9.0]])).abs().max() <= 2
    with pytest.raises(ValueError, match='components=0'):
        MODELS.build(dict(type='mmdiffrep.PointMatcher', backbone=RAW, components=0))


def test_sift_on_a_grid():
    image = texture((40, 56))
    (m,) = DenseSift(stride=8)(as_tensor(image)[None].float())
    assert m.shape == (1, 128, 5, 7) and torch.allclose(m.norm(dim=1), torch.ones(1, 5, 7), atol=1e-3)
    _, one = cv2.SIFT_create().compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), [cv2.KeyPoint(3 * 8 + 3.5, 2 * 8 + 3.5, 8.0, 0)])
    assert np.allclose(m[0, :, 2, 3].numpy(), np.sqrt(one[0] / one[0].sum()), atol=1e-6)
    shaded = DenseSift(stride=8, image_mean=(100.0,) * 3, image_std=(50.0,) * 3)((as_tensor(image)[None].float() - 100) / 50)[0]
    assert torch.equal(m, shaded)
    with pytest.raises(ValueError, match='stride=0'):
        DenseSift(stride=0)


def test_layers_are_mixed_as_a_loop_does():
    torch.manual_seed(0)
    mixing = LayerMixing([4, 6, 4, 6], [2, 4, 2, 4], out_channels=8, timesteps=2, groups=2)
    assert mixing.out_channels == [8] and mixing.out_strides == [2] and len(mixing.bottlenecks) == 2
    mixing.mixing.data = torch.tensor([0.1, -1.0, 0.7, 0.3])
    maps = [torch.randn(2, c, s, s) for c, s in ((4, 8), (6, 4), (4, 8), (6, 4))]
    weights = np.exp([0.1, -1.0, 0.7, 0.3])
    want = sum(
        float(w) * F.interpolate(mixing.bottlenecks[k % 2](m), (8, 8), mode='bilinear')
        for k, (m, w) in enumerate(zip(maps, weights / weights.sum()))
    )
    assert torch.allclose(mixing(maps, (16, 16))[0], want, atol=1e-5)
    assert mixing.weights.sum().item() == pytest.approx(1)
    mixing(maps)[0].sum().backward()
    coarse = LayerMixing([4, 6], [2, 4], out_channels=8, stride=4, groups=2)
    half = [F.interpolate(maps[0], (4, 4), mode='bilinear', antialias=False), maps[1]]
    want = sum(0.5 * b(m) for b, m in zip(coarse.bottlenecks, half))
    assert torch.allclose(coarse(maps[:2], (16, 16))[0], want, atol=1e-5)
    assert mixing.mixing.grad.abs().sum() > 0
    for timesteps in (3, 0):
        with pytest.raises(ValueError, match=f'timesteps={timesteps}'):
            LayerMixing([4, 6, 4, 6], [2, 4, 2, 4], timesteps=timesteps)
    with pytest.raises(ValueError, match='timesteps=2'):
        LayerMixing([4, 6, 6, 4], [2, 4, 2, 4], timesteps=2)


def mixing_model(tiny_config, **neck):
    denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0)
    backbone = dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['down_blocks.0', 'up_blocks.1'], timesteps=[0, 50])
    neck = dict(type='mmdiffrep.LayerMixing', out_channels=16, timesteps=2, groups=4, **neck)
    return dict(type='mmdiffrep.PointMatcher', backbone=backbone, neck=neck)


def test_a_pairs_loss_by_hand(tiny_config):
    model = MODELS.build(mixing_model(tiny_config))
    images = [as_tensor(texture((16, 24), seed)) for seed in (0, 1)]
    points = [torch.tensor([[4.0, 5.0], [20.0, 10.0]]), torch.tensor([[6.0, 5.0], [23.0, 15.0]])]
    loss = model.pair_loss(*images, *points)
    maps = [F.normalize(m, dim=0) for m in model.of_images(images)]
    total = 0.0
    for here, there in ((0, 1), (1, 0)):
        for p, q in zip(points[here].long(), points[there].long()):
            v = F.interpolate(maps[here][None], (16, 24), mode='bilinear', align_corners=False)[0, :, p[1], p[0]]
            logits = torch.einsum('c,chw->hw', F.normalize(v, dim=0), maps[there]) / 0.07
            rows, columns = logits.shape
            cell = (int((q[1] + 0.5) * rows / 16), int((q[0] + 0.5) * columns / 24))
            total += float((logits.flatten().logsumexp(0) - logits[cell]).detach()) / 4
    assert loss.item() == pytest.approx(total, rel=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match='nothing is trained here without a neck'):
        MODELS.build(dict(type='mmdiffrep.PointMatcher', backbone=RAW))(dict(source=[], target=[]), [], 'loss')


def test_a_neck_is_trained_through_the_runner(tiny_config, tmp_path):
    """On one pair the loss falls; the frozen network is in no checkpoint; weights load into a Matcher."""
    (tmp_path / 'images').mkdir()
    image = texture((32, 48))
    cv2.imwrite(str(tmp_path / 'images/a.png'), image)
    cv2.imwrite(str(tmp_path / 'images/b.png'), np.roll(image, 8, 1))
    x, y = np.meshgrid(np.arange(4, 36, 6), np.arange(4, 30, 6))
    points = np.stack([x.ravel(), y.ravel()], 1)
    pair = dict(source='a.png', target='b.png', source_points=points.tolist(), target_points=(points + [8, 0]).tolist(), target_box=[0, 0, 48, 32])
    (tmp_path / 'pairs.json').write_text(json.dumps([pair]))
    cfg = Config(dict(model=mixing_model(tiny_config)))
    data = loader(type='mmdiffrep.KeypointPairs', data_root=str(tmp_path))
    runner = Runner(
        cfg.model, str(tmp_path / 'run'), train_dataloader=data, train_cfg=dict(by_epoch=True, max_epochs=25), experiment_name='mixing',
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=3e-3)), default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=25)),
        randomness=dict(seed=0),
    )  # fmt: skip
    model = runner.model
    item = runner.train_dataloader.dataset[0]
    pair_of = [item['inputs'][s].flip(0) for s in ('source', 'target')]
    told = (item['data_samples'].source_points, item['data_samples'].target_points)
    before = float(model.pair_loss(*pair_of, *told))
    runner.train()
    assert float(model.pair_loss(*pair_of, *told)) < 0.8 * before
    file = tmp_path / 'run/epoch_25.pth'
    assert not any('conv_in' in key for key in torch.load(file, weights_only=True)['state_dict'])
    matcher = Matcher(cfg, file)
    found = matcher.match(tmp_path / 'images/a.png', tmp_path / 'images/b.png', told[0])
    assert torch.equal(found.points, model.eval().match(*pair_of, told[0]).points.cpu())
    with pytest.raises(ValueError, match='a neck .LayerMixing. that is trained'):
        Matcher(cfg)


# ---- Matcher --------------------------------------------------------------------------------------------------


def matcher(**model):
    return Matcher(Config(dict(model={**dict(type='mmdiffrep.PointMatcher', backbone=SIFT), **model})))


def test_the_matcher_answers_as_the_model_and_looks_once(tmp_path):
    image, other = texture(), np.roll(texture(), 5, 1)
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    ours = matcher()
    looks = []
    ours.model.backbone.register_forward_hook(lambda *_: looks.append(1))
    points = [[30.0, 40.0], [90.0, 60.0]]
    want = ours.model.match(as_tensor(image), as_tensor(other), points).points.cpu()
    looks.clear()
    for source in (image, tmp_path / 'a.png', as_tensor(image)):
        found = ours.match(source, other, points)
        assert torch.equal(found.points, want)
    assert len(looks) == 2
    assert torch.allclose(found.points, torch.tensor(points) + torch.tensor([5.0, 0.0]), atol=2)
    heat = ours.scores(image, other, points[0])
    assert heat.shape == (96, 120) and divmod(int(heat.argmax()), 120)[::-1] == tuple(found.points[0].long().tolist())
    for seed in range(9):
        ours.features(texture(seed=seed + 5))
    assert len(ours._maps) == 8


def test_flips_seen_by_the_matcher():
    image = texture()
    ours = matcher(flip=True)
    found = ours.match(image, image[:, ::-1].copy(), [[10.0, 20.0]])
    assert found.flipped and (found.points - torch.tensor([[109.0, 20.0]])).abs().max() <= 2
    assert torch.equal(found.points, ours.model.match(as_tensor(image), as_tensor(image[:, ::-1]), [[10.0, 20.0]]).points.cpu())


def test_flow_keypoints_and_objects():
    image = texture()
    ours = matcher()
    flow, score = ours.flow(image, image)
    assert flow.shape == (2, 96, 120) and flow.abs().max() < 1e-3 and score.min() > 0.999
    flow, _ = ours.flow(image, np.roll(image, 8, 1))
    assert (flow[0, 20:70, 20:90] - 8).abs().median() < 1e-3 and flow[1, 20:70, 20:90].abs().median() < 1e-3
    half = np.ascontiguousarray(image[::2, ::2])
    sheet = draw_flow(image, np.roll(image, 8, 1), np.stack([np.full((96, 120), 8.0), np.zeros((96, 120))]), 120)
    rows = range(sheet.shape[0] - 95)
    seen = [x for x in range(sheet.shape[1] - 99) if any((sheet[y : y + 96, x : x + 100] == image[:, :100]).all() for y in rows)]
    assert len(seen) == 3  # the source, shifted by 8 in the target, and carried back
    with pytest.raises(ValueError, match='do not fit'):
        draw_flow(image, half, flow.numpy()[:, 1:])
    found = ours.mutual(image, image, detector='corners', count=50)
    assert torch.equal(found.source, found.target) and len(found.scores) > 20
    mask = np.zeros((96, 120), np.uint8)
    mask[30:60, 40:80] = 1
    frames = list(ours.propagate([image, image, image], mask, topk=1, radius=3))
    assert [m.shape for m in frames] == [(96, 120)] * 3
    assert region(frames[2] == 1, mask == 1) > 0.85
    with pytest.raises(ValueError, match="take another, e.g. 'grid'"):
        ours.mutual(np.zeros((40, 40, 3), np.uint8), image)


@pytest.mark.parametrize(
    'call, error, message',
    [
        (lambda m, a: m.match('nowhere.png', a, [[1, 2]]), FileNotFoundError, 'nowhere.png: no such file'),
        (lambda m, a: m.match(a, a, []), ValueError, 'one point or more'),
        (lambda m, a: m.match(a, a, [[1, 500]]), ValueError, r'x, y = \[1.0, 500.0\] lies outside the image of 120×96'),
        (lambda m, a: m.match(a[..., 0], a, [[1, 2]]), ValueError, r'uint8 \(96, 120\)'),
        (lambda m, a: m.match(torch.zeros(4, 9, 9), a, [[1, 2]]), ValueError, r'shape \(4, 9, 9\)'),
        (lambda m, a: m.homography(a, a, 'best'), ValueError, "method='best'"),
    ],
)
def test_what_cannot_be_matched(call, error, message):
    with pytest.raises(error, match=message):
        call(matcher(), texture())


def test_configs_that_match_nothing(tmp_path):
    with pytest.raises(ValueError, match='builds a RawPixels; needed: PointMatcher'):
        Matcher(Config(dict(model=RAW)))
    with pytest.raises(FileNotFoundError, match='dift_sift_toyscenes'):
        Matcher('dift_sift_toyscenes-12x12')
    (tmp_path / 'a.png').write_text('no image')
    with pytest.raises(ValueError, match='a.png is no image'):
        matcher().match(tmp_path / 'a.png', texture(), [[1, 2]])


# ---- known transforms, prompts --------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['toy-unet', 'natural-unet'])
def test_known_transforms_of_toyscenes(name):
    """With the shipped networks (cells of 4 pixels): an image in itself to half a cell; shifts, flips and turns as configs/dift/README.md says."""
    from mmdiffrep.datasets.toyscenes.scene import generate_scene

    ours = Matcher(f'dift_{name}_toyscenes-128x128')
    errors: dict = {}
    for index in range(4):
        image = generate_scene(0, index, (128, 128), 'val').image
        points = detect(image, 'sift', 40)
        points = points[((points >= 16) & (points <= 111)).all(1)]
        x, y = points.t()
        cases = dict(
            same=(image, points),
            shifted=(np.roll(image, 8, 1), torch.stack([x + 8, y], 1)),
            flipped=(image[:, ::-1], torch.stack([127 - x, y], 1)),
            turned=(np.rot90(image), torch.stack([y, 127 - x], 1)),
        )
        for case, (other, true) in cases.items():
            found = ours.match(image, np.ascontiguousarray(other), points)
            errors.setdefault(case, []).append((found.points - true).norm(dim=1))
    errors = {case: torch.cat(values) for case, values in errors.items()}
    assert len(errors['same']) > 60
    assert errors['same'].max() <= 2
    assert errors['shifted'].median() <= 1 and (errors['shifted'] <= 8).float().mean() > 0.85
    assert errors['flipped'].median() <= 10 and errors['turned'].median() <= 24  # not invariant: far better than the 50 of chance


def test_each_category_is_told_to_the_network():
    told = []

    class Listening(torch.nn.Module):
        out_channels, out_strides = [3], [1]

        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(1))

        def prompted(self, prompts):
            import contextlib

            told.append(list(prompts))
            return contextlib.nullcontext()

        def forward(self, x):
            return (x * self.one,)

    model = MODELS.build(dict(type='mmdiffrep.PointMatcher', backbone=RAW, prompt='a photo of a {category}'))
    model.backbone = Listening()
    image = as_tensor(texture((12, 16)))
    model.match(image, image, [[3, 4]], 'bird')
    model.match(image, image, [[3, 4]])
    assert told == [['a photo of a bird']] * 2 + [['a photo of a thing']] * 2

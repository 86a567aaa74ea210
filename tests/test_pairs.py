"""Pairs of images: every layout, PCK's variants by hand, the matcher through the runner, what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import Runner

import mmdiffrep  # noqa: F401
from mmdiffrep.datasets import KeypointPairs, PFPascalDataset, PFWillowDataset, SPairDataset
from mmdiffrep.evaluation import PCK
from mmdiffrep.models.correspondence.looking import joined
from mmdiffrep.registry import MODELS
from mmdiffrep.structures import PairSample

DATA = Path(__file__).parents[1] / 'data'


def write_images(folder, *names, size=(20, 30)):
    draws = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), draws.integers(256, size=(*size, 3), dtype=np.uint8))


def pair(**changes):
    made = dict(source='a.png', target='b.png', source_points=[[3, 4], [20, 10]], target_points=[[5, 6], [21, 11]], target_box=[0, 0, 20, 10])
    made.update(changes)
    return {k: v for k, v in made.items() if v is not None}


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / 'images', 'a.png', 'b.png')

    def write(*pairs):
        (tmp_path / 'pairs.json').write_text(json.dumps(list(pairs)))
        return tmp_path

    return write


def test_a_list_of_pairs(folder):
    other = dict(source_path='b.png', target_path='a.png', source_points=[[1, 2]], target_points=[[3, 4]], target_bounding_box=[1, 2, 3, 9], category='cat')
    data = KeypointPairs(folder(pair(), other))
    item = data[1]
    assert item['inputs']['source'].shape == (3, 20, 30)
    assert torch.equal(item['inputs']['source'], data[0]['inputs']['target'])
    sample = item['data_samples']
    assert sample.target_box == [1, 2, 3, 9] and sample.category == 'cat' and sample.source_shape == (20, 30)
    assert sample.source_points.tolist() == [[1, 2]] and sample.target_points.tolist() == [[3, 4]]
    assert len(KeypointPairs(folder(pair(), other), categories=['cat'])) == 1 and data.metainfo['categories'] == ('cat',)
    assert len(KeypointPairs(folder(pair(), other), max_pairs=1)) == 1


def test_spairs_layout(tmp_path):
    about = dict(
        category='cat', src_imname='1.jpg', trg_imname='2.jpg', src_kps=[[1, 2], [3, 4]], trg_kps=[[5, 6], [7, 8]], src_bndbox=[0, 0, 9, 9],
        trg_bndbox=[1, 1, 8, 8],
    )  # fmt: skip
    write_images(tmp_path / 'JPEGImages/cat', '1.jpg', '2.jpg')
    file = tmp_path / 'PairAnnotation/test/1.json'
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(about))
    sample = SPairDataset(tmp_path)[0]['data_samples']
    assert sample.target_points.tolist() == [[5, 6], [7, 8]] and sample.target_box == [1, 1, 8, 8] and sample.category == 'cat'
    with pytest.raises(FileNotFoundError, match='unpack SPair-71k.tar.gz'):
        SPairDataset(tmp_path, 'val')
    with pytest.raises(ValueError, match="split='train'"):
        SPairDataset(tmp_path, 'train')
    del about['trg_kps']
    file.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"1.json lacks \['trg_kps'\]"):
        SPairDataset(tmp_path)


def test_proposal_flows_layouts(tmp_path):
    write_images(tmp_path, 'duck/1.png', 'duck/2.png')
    x, y = [str(v) for v in range(10)], [str(v) for v in range(10, 20)]
    lines = ['imageA,imageB,' + ','.join('XYXY' * 10), ','.join(['duck/1.png', 'duck/2.png', *x, *y, *y, *x])]
    (tmp_path / 'test_pairs_pf.csv').write_text('\n'.join(lines))
    sample = PFWillowDataset(tmp_path)[0]['data_samples']
    assert sample.source_points[3].tolist() == [3, 13] and sample.target_points[3].tolist() == [13, 3]
    assert sample.target_box == [10, 0, 19, 9] and sample.category == 'duck'
    lines = ['source_image,target_image,class,XA,YA,XB,YB', 'duck/1.png,duck/2.png,3,1;2;3,4;5;6,7;8;9,1;1;2']
    (tmp_path / 'test_pairs_pf_pascal.csv').write_text('\n'.join(lines))
    sample = PFPascalDataset(tmp_path)[0]['data_samples']
    assert sample.source_points.tolist() == [[1, 4], [2, 5], [3, 6]] and sample.target_points.tolist() == [[7, 1], [8, 1], [9, 2]]
    (tmp_path / 'test_pairs_pf.csv').write_text('h\nduck/1.png,duck/2.png,1')
    with pytest.raises(ValueError, match='line 2, has 3 columns'):
        PFWillowDataset(tmp_path)


def test_wrong_pairs_are_refused_by_name(folder):
    for changes, message in (
        (dict(target_points=None), r"pair 0 of .*pairs.json lacks \['target_points'\]"),
        (dict(target_points=[[1, 2]]), 'has 2 points in the source and 1 in the target'),
        (dict(source_points=[], target_points=[]), 'one or more'),
    ):
        with pytest.raises(ValueError, match=message):
            KeypointPairs(folder(pair(**changes)))
    with pytest.raises(ValueError, match='holds no pairs'):
        KeypointPairs(folder())
    with pytest.raises(FileNotFoundError, match='no such list of pairs'):
        KeypointPairs(folder(pair()), ann_file='other.json')
    with pytest.raises(FileNotFoundError, match=r'c.png .pair 0 of'):
        KeypointPairs(folder(pair(target='c.png')))[0]


def test_pcks_variants_by_hand():
    """Two pairs of 2 and 1 points; image 200 long, box 100; distances 10, 20.5 and 20."""

    def sample(distances, category):
        n = len(distances)
        return dict(
            pred_points=torch.tensor([[d, 0.0] for d in distances]), target_points=torch.zeros(n, 2), target_shape=(200, 150),
            target_box=[50, 20, 150, 60], category=category,
        )  # fmt: skip

    def measured(**kwargs):
        metric = PCK(alphas=[0.1, 0.2], by=['box', 'image'], **kwargs)
        metric.process({}, [sample([10, 20.5], 'a'), sample([20], 'b')])
        return metric.compute_metrics(metric.results)

    found = measured()
    # by box the limits are 10 and 20, by image 20 and 40
    assert found['box-per-point@0.1'] == pytest.approx(100 / 3)
    assert found['box-per-image@0.1'] == pytest.approx(25)
    assert found['box-per-point@0.2'] == pytest.approx(200 / 3)
    assert found['box-per-image@0.2'] == pytest.approx(75)
    assert found['box-per-point-category@0.2'] == pytest.approx(75)
    assert found['image-per-point@0.1'] == pytest.approx(200 / 3) and found['image-per-point@0.2'] == 100
    strict = measured(strict=True)
    assert strict['box-per-point<0.1'] == 0 and strict['box-per-image<0.2'] == pytest.approx(25)
    assert strict['image-per-point<0.1'] == pytest.approx(100 / 3)
    with pytest.raises(ValueError, match="by=.'mask'."):
        PCK(by='mask')
    metric = PCK()
    with pytest.raises(ValueError, match='no target_box'):
        metric.process({}, [{**sample([1], 'a'), 'target_box': None}])


def matcher(tiny, **kwargs):
    denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny, random_seed=0)
    backbone = dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['up_blocks.1'], timesteps=10, noise=dict(kind='shared', draws=2))
    return MODELS.build({**dict(type='mmdiffrep.PointMatcher', backbone=backbone), **kwargs}).eval()


def test_the_matcher_is_the_published_way(tiny_config):
    """Both maps resized to the images, compared there; also with images resized for the network, and BGR input."""
    g = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=g, dtype=torch.uint8) for size in ((21, 30), (26, 19))]
    points = torch.tensor([[3.0, 4.0], [20.0, 10.0], [29.0, 20.0]])
    model = matcher(tiny_config, size=16)
    maps = []
    for image in images:
        small = F.interpolate(image[None].float(), (16, 16), mode='bicubic', antialias=True).clamp(0, 255)
        mean, std = model.backbone.image_mean, model.backbone.image_std
        with torch.no_grad():
            m = model.backbone((small - mean) / std)[0]
        maps.append(F.interpolate(m.double(), image.shape[1:], mode='bilinear')[0])
    want = []
    for x, y in points.long():
        scores = torch.einsum('c,chw->hw', F.normalize(maps[0][:, y, x], dim=0), F.normalize(maps[1], dim=0))
        want.append([int(scores.argmax()) % 19, int(scores.argmax()) // 19])
    assert model.match(*images, points).points.tolist() == want
    sample = PairSample()
    sample.source_points = points
    batch = dict(inputs=dict(source=[images[0].flip(0)], target=[images[1].flip(0)]), data_samples=[sample])
    (said,) = model.test_step(batch)
    assert said.pred_points.tolist() == want and said.pred_scores.shape == (3,)


def test_a_second_backbone_and_the_mirror(tiny_config):
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 24, 32), generator=g, dtype=torch.uint8)
    points = torch.tensor([[6.0, 9.0], [25.0, 20.0]])
    second = dict(type='mmdiffrep.RawPixels', strides=[2])
    model = matcher(tiny_config, second=second, share=0.3)
    m = model.features(image)
    assert m.shape == (16 + 3, 24, 32)
    assert m[:16].norm(dim=0).square().mean().item() == pytest.approx(0.7, abs=1e-4)
    assert m[16:].norm(dim=0).square().mean().item() == pytest.approx(0.3, abs=1e-4)
    assert (model.match(image, image, points).points - points).abs().max() <= 1
    colours = MODELS.build(dict(type='mmdiffrep.PointMatcher', backbone=dict(type='mmdiffrep.RawPixels', strides=[1]), flip=True, metric='l2'))
    found = colours.match(image, image.flip(-1), points)
    assert found.points.tolist() == [[25, 9], [6, 20]]  # every colour is there once
    several = joined([torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)], 'cosine')
    assert several.shape == (1, 10, 8, 8) and torch.allclose(several[:, :4].norm(dim=1), torch.ones(1, 8, 8))
    with pytest.raises(ValueError, match='share=2'):
        matcher(tiny_config, share=2)
    with pytest.raises(ValueError, match='lies outside the image'):
        model.match(image, image, [[40, 3]])


def test_through_the_runner(folder, tiny_config, tmp_path):
    """An image matched with itself is found to half a cell."""
    box = [0, 0, 30, 20]
    root = folder(pair(target='a.png', target_points=[[3, 4], [20, 10]], target_box=box), pair(source='b.png', target_points=[[3, 4], [20, 10]], target_box=box))
    config = matcher(tiny_config)  # builds
    assert config is not None
    denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0)
    model = dict(type='mmdiffrep.PointMatcher', backbone=dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['down_blocks.0.resnets.0'], timesteps=0))
    loader = dict(
        batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), collate_fn=dict(type='pseudo_collate'),
        dataset=dict(type='mmdiffrep.KeypointPairs', data_root=str(root)),
    )  # fmt: skip
    runner = Runner(
        model, str(tmp_path / 'run'), test_dataloader=loader, test_cfg=dict(), experiment_name='pairs',
        test_evaluator=dict(type='mmdiffrep.PCK', alphas=[0.05], per='point'),
    )  # fmt: skip
    assert runner.test()['pck/box-per-point@0.05'] == 100


@pytest.mark.skipif(not (DATA / 'spair_mini/pairs.json').exists(), reason='needs the six pairs of SPair-71k')
def test_spairs_six_pairs():
    data = KeypointPairs(DATA / 'spair_mini')
    assert len(data) == 6 and all(len(data[i]['data_samples'].source_points) for i in range(6))


def test_pairs_are_drawn(folder, tmp_path):
    """A right and a wrong point: green and red in their pictures, named by number and category."""
    from mmdiffrep.engine.hooks import DrawPairsHook
    from mmdiffrep.visualization.matches import draw_matches

    root = folder(pair(category='cat'), pair(target_box=None), pair())
    samples = [KeypointPairs(root)[i]['data_samples'] for i in range(3)]
    for sample in samples:
        sample.pred_points = sample.target_points + torch.tensor([[1.0, 0.0], [5.0, 0.0]])  # of 2 allowed by the box, 3 by the image
    DrawPairsHook(tmp_path / 'shown', interval=2).after_test_iter(None, 0, None, samples)
    assert sorted(p.name for p in (tmp_path / 'shown').iterdir()) == ['00000_cat.png', '00002.png']
    drawn = cv2.imread(str(tmp_path / 'shown/00000_cat.png'))[..., ::-1]
    images = [cv2.imread(str(root / 'images' / name))[..., ::-1] for name in ('a.png', 'b.png')]
    points = [getattr(samples[0], name).tolist() for name in ('source_points', 'pred_points', 'target_points')]
    assert np.array_equal(drawn, draw_matches(*images, *points, right=[True, False]))
    assert not np.array_equal(drawn, draw_matches(*images, *points, right=[True, True]))
    with pytest.raises(ValueError, match='leave the hook out'):
        DrawPairsHook(tmp_path).after_test_iter(None, 0, None, [PairSample()])
    with pytest.raises(ValueError, match='2 points, 1 found'):
        draw_matches(*images, [[1, 2], [3, 4]], [[1, 2]])

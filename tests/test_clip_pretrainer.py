"""ClipPretrainer: loss, embeddings, a training, what it saves; captions, crops, the zero-shot metric."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner

open_clip = pytest.importorskip('open_clip')

import mmdiffrep  # noqa: E402, F401
from mmdiffrep.datasets import captions as captions_module  # noqa: E402
from mmdiffrep.datasets.captions import ImageCaptions  # noqa: E402
from mmdiffrep.datasets.coco import square_crop, squashed  # noqa: E402
from mmdiffrep.datasets.instance_crops import InstanceCrops  # noqa: E402
from mmdiffrep.datasets.toyscenes import generate_scene, write_toyscenes  # noqa: E402
from mmdiffrep.datasets.toyscenes.classes import HELD_OUT, THINGS  # noqa: E402
from mmdiffrep.engine.hooks import SaveClipHook  # noqa: E402
from mmdiffrep.evaluation import ZeroShotAccuracy  # noqa: E402
from mmdiffrep.models.pretrainers import ClipPretrainer, clip_pretrainer  # noqa: E402
from mmdiffrep.openvocab import build_tokenizer, load_clip  # noqa: E402

pytestmark = pytest.mark.usefixtures('all_on_accelerator')
ROOT = Path(__file__).parents[1]
WORDS = ['a red disc, a blue star and a green ring in front of sand']
TINY = dict(
    embed_dim=6,
    vision_cfg=dict(image_size=16, patch_size=8, width=16, layers=1, head_width=8),
    text_cfg=dict(context_length=12, width=16, layers=1, heads=2, mlp_ratio=2.0),
)


def pretrainer(**options):
    torch.manual_seed(0)
    return ClipPretrainer(TINY, WORDS, **options)


# ---- the model ------------------------------------------------------------------------------------------------


def slow_loss(images, texts, scale):
    """Image by image, caption by caption."""
    count, total = len(images), 0.0
    unit = [[v / v.norm() for v in side.double()] for side in (images, texts)]
    logits = [[scale * float(unit[0][i] @ unit[1][j]) for j in range(count)] for i in range(count)]
    for i in range(count):
        row = sum(math.exp(logits[i][j]) for j in range(count))
        column = sum(math.exp(logits[j][i]) for j in range(count))
        total += -math.log(math.exp(logits[i][i]) / row) - math.log(math.exp(logits[i][i]) / column)
    return total / (2 * count)


@pytest.mark.parametrize('scale', [1.0, 14.3, 100.0])
def test_loss_is_the_slow_one(scale):
    model = pretrainer()
    model.clip.logit_scale.data.fill_(math.log(scale))
    inputs = torch.randn(5, 3, 16, 16)
    captions = [
        'a red disc',
        'a blue star',
        'sand',
        'a blue star',
        'a blue star and sand',
    ]  # one twice
    found = model(inputs, captions, mode='loss')
    with torch.no_grad():
        images = model.clip.encode_image(inputs)
        texts = model.clip.encode_text(model.tokenizer(captions))
    assert found['loss'].item() == pytest.approx(slow_loss(images, texts, scale), rel=1e-4)
    assert found['logit_scale'].item() == pytest.approx(scale)
    found['loss'].backward()
    still = [n for n, p in model.named_parameters() if p.grad is None]
    assert not still


def test_loss_of_equal_and_of_perfect_pairs(monkeypatch):
    model = pretrainer()
    same, unit = torch.ones(4, 6) / 6**0.5, torch.eye(6)[:4]
    monkeypatch.setattr(model, '_embed', lambda inputs, captions: (same, same))
    assert model(torch.zeros(4, 3, 16, 16), [''] * 4, mode='loss')['loss'].item() == pytest.approx(
        math.log(4)
    )
    monkeypatch.setattr(model, '_embed', lambda inputs, captions: (unit, unit))
    model.clip.logit_scale.data.fill_(1.0)
    wanted = math.log(1 + 3 * math.exp(-math.e))
    assert model(torch.zeros(4, 3, 16, 16), [''] * 4, mode='loss')['loss'].item() == pytest.approx(
        wanted, rel=1e-3
    )


def test_scale_is_clamped_as_open_clip_does():
    model = pretrainer()
    for given, wanted in ((9.0, 100.0), (-2.0, 1.0)):
        model.clip.logit_scale.data.fill_(given)
        found = model(torch.randn(2, 3, 16, 16), ['a', 'b'], mode='loss')
        assert found['logit_scale'].item() == pytest.approx(wanted)
        assert model.clip.logit_scale.exp().item() == pytest.approx(wanted)


def test_predictions():
    names = ['red disc', 'blue star', 'sand']
    model = pretrainer(class_names=names, templates=['a {}', '{} on sand']).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    data = dict(inputs=images, caption=['a ring', 'sand'], label=torch.tensor([2, 0]))
    first, second = model.val_step(data)
    # BGR to open_clip's own normalised RGB
    rgb = images.flip(1).float() / 255
    mean, std = (
        torch.tensor(getattr(open_clip.constants, f'OPENAI_DATASET_{k}')).view(3, 1, 1)
        for k in ('MEAN', 'STD')
    )
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(model.clip.encode_image((rgb - mean) / std), dim=-1)
        rows = []
        for name in names:
            both = [
                model.clip.encode_text(model.tokenizer([t]))[0]
                for t in (f'a {name}', f'{name} on sand')
            ]
            middle = sum(v / v.norm() for v in both) / 2
            rows.append(middle / middle.norm())
        text = model.clip.encode_text(model.tokenizer(['sand']))[0]
    torch.testing.assert_close(
        torch.stack([first['embedding'], second['embedding']]), wanted, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        second['scores'], torch.stack(rows) @ wanted[1], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(second['text_embedding'], text / text.norm(), rtol=1e-4, atol=1e-5)
    assert (int(first['label']), int(second['label'])) == (2, 0)
    plain = pretrainer().eval().val_step(dict(inputs=images))
    assert set(plain[0]) == {'embedding'}


def test_model_errors():
    with pytest.raises(
        ValueError, match="class_names='disc' does not fit; allowed: a list of names"
    ):
        pretrainer(class_names='disc')
    with pytest.raises(ValueError, match=r"templates=\['a photo'\] does not fit"):
        pretrainer(class_names=['disc'], templates=['a photo'])
    with pytest.raises(ValueError, match='vocab_size=49408, but the vocabulary needs'):
        ClipPretrainer(dict(TINY, text_cfg=dict(TINY['text_cfg'], vocab_size=49408)), WORDS)
    with pytest.raises(
        ValueError,
        match=r'images of \(8, 16\) pixels were given, vision_cfg says image_size=\(16, 16\)',
    ):
        pretrainer()(torch.zeros(1, 3, 8, 16), ['a'], mode='loss')
    with pytest.raises(ValueError, match="mode='loss' needs captions"):
        pretrainer()(torch.zeros(1, 3, 16, 16), mode='loss')
    with pytest.raises(ValueError, match="dtype='int8' is unknown; allowed: 'fp32', 'fp16'"):
        SaveClipHook(dtype='int8')
    with pytest.raises(ValueError, match="name='a/b' does not fit"):
        SaveClipHook(name='a/b')


@pytest.mark.parametrize('local', [False, True])
def test_processes_share_one_batch(local, monkeypatch):
    """Two processes of two pairs each: the mean of their losses, and their gradients, are those of one batch of four."""
    inputs = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    captions = ['a red disc', 'a blue star', 'sand', 'a green ring']
    whole = pretrainer()
    with torch.no_grad():
        images, texts = whole(inputs, captions)
    whole(inputs, captions, mode='loss')['loss'].backward()
    monkeypatch.setattr(clip_pretrainer, 'get_world_size', lambda: 2)
    losses, gradients = [], 0
    for rank in (0, 1):
        monkeypatch.setattr(clip_pretrainer, 'get_rank', lambda rank=rank: rank)
        model = pretrainer(local_loss=local)
        mine = slice(2 * rank, 2 * rank + 2)

        def gather(given, tensor, mine=mine):
            everyone = next(
                x for x in (images, texts) if torch.allclose(x[mine], tensor, atol=1e-5)
            )
            for part, value in zip(given, everyone.chunk(2)):
                part.copy_(value)

        monkeypatch.setattr(torch.distributed, 'all_gather', gather)
        loss = model(inputs[mine], captions[mine], mode='loss')['loss']
        loss.backward()
        losses.append(loss.item())
        gradients = gradients + model.clip.visual.proj.grad
    wanted = slow_loss(images, texts, 1 / 0.07)
    assert sum(losses) / 2 == pytest.approx(wanted, rel=1e-4)
    if not local:  # each computes the whole loss, and the gradient of its own part
        assert losses == pytest.approx([wanted] * 2, rel=1e-4)
        torch.testing.assert_close(gradients, whole.clip.visual.proj.grad, rtol=1e-3, atol=1e-5)


# ---- data -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return write_toyscenes(
        tmp_path_factory.mktemp('data') / 'toys', dict(train=8, val=4, val_heldout=4), (48, 48)
    )


def source(root, split='train', **more):
    return dict(
        ann_file=str(root / f'annotations/captions_{split}.json'),
        img_dir=str(root / f'images/{split}'),
        **more,
    )


def instances(root, split):
    return dict(
        ann_file=str(root / f'annotations/instances_{split}.json'),
        img_dir=str(root / f'images/{split}'),
    )


def test_captions_belong_to_their_pictures(scenes):
    data = ImageCaptions(source(scenes), 48, random=False)
    content = json.loads((scenes / 'annotations/captions_train.json').read_text())
    captions = {a['image_id']: a['caption'] for a in content['annotations']}
    assert len(data) == 8
    for item, image in zip(data, content['images']):
        assert item['caption'] == captions[image['id']]
        picture = cv2.imread(str(scenes / 'images/train' / image['file_name']))
        assert torch.equal(item['inputs'], torch.from_numpy(picture).permute(2, 0, 1))
    small = ImageCaptions(source(scenes, repeat=3), 16, random=False)
    assert len(small) == 24 and small[0]['inputs'].shape == (3, 16, 16)
    whole = cv2.resize(
        cv2.imread(str(scenes / 'images/train/000000.png')), (16, 16), interpolation=cv2.INTER_AREA
    )
    assert np.array_equal(small[0]['inputs'].permute(1, 2, 0), whole)


def test_kept_pictures_are_read_once(scenes, monkeypatch):
    read = []
    real = captions_module.read_image
    monkeypatch.setattr(captions_module, 'read_image', lambda *a: read.append(a[0]) or real(*a))
    kept, plain = (ImageCaptions(source(scenes), 24, random=False, cache=c) for c in (True, False))
    for _ in range(2):
        assert all(torch.equal(kept[i]['inputs'], plain[i]['inputs']) for i in range(8))
    assert len(read) == 8 + 2 * 8


def test_flips_keep_everything_else(scenes):
    data, still = (ImageCaptions(source(scenes), 48, random=r) for r in (True, False))
    torch.manual_seed(0)
    seen = set()
    for _ in range(12):
        image, wanted = data[0]['inputs'], still[0]['inputs']
        flipped = torch.equal(image, wanted.flip(2))
        assert flipped or torch.equal(image, wanted)
        seen.add(flipped)
    assert seen == {True, False}


def test_regions_are_pairs_of_their_own(scenes):
    regions = scenes / 'annotations/instances_train.json'
    data = ImageCaptions(
        source(scenes, regions=str(regions)),
        24,
        region_templates=('{name}', '{pattern} {shape}'),
        min_side=6,
    )
    content = json.loads(regions.read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    kept = [a for a in content['annotations'] if min(a['bbox'][2:]) >= 6]
    assert len(data) == 8 + len(kept) and len(kept) < len(content['annotations']) + 1
    torch.manual_seed(0)
    for number, annotation in enumerate(kept):
        name, pattern = names[annotation['category_id']], annotation['attributes']['pattern']
        seen = {data[8 + number]['caption'] for _ in range(20)}
        assert seen == {name, f'{pattern} {name.split()[1]}'}
        assert data[8 + number]['inputs'].shape == (3, 24, 24)
    assert not any(held in item.captions[0] for item in data.items[8:] for held in HELD_OUT)


def test_a_region_is_never_cut(tmp_path):
    """A white box in black, wherever its square is drawn: all of its pixels stay."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:38] = 255
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    images = [dict(id=1, file_name='a.png')]
    box = dict(id=1, image_id=1, category_id=5, bbox=[30, 10, 8, 10])
    for name, content in dict(
        captions=dict(images=images, annotations=[dict(id=1, image_id=1, caption='black')]),
        boxes=dict(images=images, annotations=[box], categories=[dict(id=5, name='box')]),
    ).items():
        (tmp_path / f'{name}.json').write_text(json.dumps(content))
    given = dict(
        ann_file=str(tmp_path / 'captions.json'),
        img_dir=str(tmp_path),
        regions=str(tmp_path / 'boxes.json'),
    )
    data = ImageCaptions(given, 40, context=(1.0, 2.0))
    torch.manual_seed(0)
    shares = [(data[1]['inputs'][0] > 127).float().mean().item() for _ in range(60)]
    # 80 pixels of a square whose side is between 10 and 20
    assert min(shares) == pytest.approx(80 / 400, abs=0.03) and max(shares) == pytest.approx(
        80 / 100, abs=0.08
    )


def test_square_crop_against_single_pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    assert np.array_equal(square_crop(image, (3, 2, 4, 4)), image[2:6, 3:7])
    crop = square_crop(
        image, (8, 5, 4, 2), context=2
    )  # 8 × 8 about (10, 6): over the right and the lower border
    assert crop.shape == (8, 8, 3)
    for i in range(8):
        for j in range(8):
            assert np.array_equal(crop[i, j], image[min(2 + i, 8), min(6 + j, 11)])
    assert squashed(image, 6).shape == (6, 6, 3)


def test_crops_and_labels(scenes):
    splits = [instances(scenes, split) for split in ('val', 'val_heldout')]
    data = InstanceCrops(splits, 32, THINGS, min_side=4, context=1.0)
    wanted = []
    for split in ('val', 'val_heldout'):
        content = json.loads((scenes / f'annotations/instances_{split}.json').read_text())
        files = {image['id']: image['file_name'] for image in content['images']}
        for a in content['annotations']:
            if min(a['bbox'][2:]) >= 4:
                wanted.append((f'{split}/{files[a["image_id"]]}', a['category_id'] - 1, a['bbox']))
    assert [
        (path.split('images/')[1], label, list(box)) for path, box, label in data.items
    ] == wanted
    assert data[0]['label'] == wanted[0][1] and data[0]['inputs'].shape == (3, 32, 32)
    assert any(THINGS[label] in HELD_OUT for _, label, _ in wanted)
    assert InstanceCrops(splits[0], 8).class_names == list(THINGS)


def test_data_errors(scenes, tmp_path):
    good = source(scenes)
    with pytest.raises(FileNotFoundError, match='none.json: no such file'):
        ImageCaptions(dict(good, ann_file='none.json'), 8)
    with pytest.raises(FileNotFoundError, match="img_dir='nowhere': no such folder"):
        ImageCaptions(dict(good, img_dir='nowhere'), 8)
    with pytest.raises(FileNotFoundError, match='000000.png: no such file. Is img_dir='):
        ImageCaptions(dict(good, img_dir=str(tmp_path)), 8)
    with pytest.raises(ValueError, match='holds no captions: annotation 1 has none'):
        ImageCaptions(dict(instances(scenes, 'train')), 8)
    with pytest.raises(ValueError, match=r"lacks \['categories'\]"):
        InstanceCrops(dict(good), 8)
    with pytest.raises(
        ValueError,
        match=r"source .* does not fit: it needs \['ann_file', 'img_dir'\], and may have",
    ):
        ImageCaptions(dict(good, path='x'), 8)
    with pytest.raises(
        ValueError,
        match=r"unknown fields \['color'\]; allowed: \['colour', 'name', 'pattern', 'shape'\]",
    ):
        ImageCaptions(
            dict(good, regions=instances(scenes, 'train')['ann_file']),
            8,
            region_templates=['{color}'],
        )
    with pytest.raises(ValueError, match='context=.2, 1. does not fit'):
        ImageCaptions(good, 8, context=(2, 1))
    with pytest.raises(ValueError, match='size=0 does not fit'):
        ImageCaptions(good, 0)
    with pytest.raises(
        ValueError, match='36 categories that are not among the 1 class_names|35 categories'
    ):
        InstanceCrops(instances(scenes, 'val'), 8, ['red disc'])
    with pytest.raises(ValueError, match='repeat=0 does not fit: allowed is a whole number'):
        ImageCaptions(dict(good, repeat=0), 8)
    with pytest.raises(ValueError, match="region_templates='{name}' does not fit; allowed: a list"):
        ImageCaptions(
            dict(good, regions=instances(scenes, 'train')['ann_file']), 8, region_templates='{name}'
        )
    nameless = json.loads((scenes / 'annotations/instances_val.json').read_text())
    nameless['annotations'][0].pop('category_id')
    (tmp_path / 'nameless.json').write_text(json.dumps(nameless))
    with pytest.raises(ValueError, match='has bbox=.* and category_id=None; needed is a box'):
        InstanceCrops(dict(instances(scenes, 'val'), ann_file=str(tmp_path / 'nameless.json')), 8)
    broken = tmp_path / 'broken.json'
    broken.write_text('{')
    with pytest.raises(ValueError, match='broken.json is not valid JSON'):
        ImageCaptions(dict(good, ann_file=str(broken)), 8)
    broken.write_text(json.dumps(dict(images=[], annotations=[dict(image_id=7)])))
    with pytest.raises(ValueError, match='belongs to image 7, which is not among its 0 images'):
        ImageCaptions(dict(good, ann_file=str(broken)), 8)


def test_an_unreadable_picture_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / 'good.png'), np.full((8, 8, 3), 7, np.uint8))
    (tmp_path / 'bad.png').write_bytes(b'no picture')
    content = dict(
        images=[dict(id=1, file_name='bad.png'), dict(id=2, file_name='good.png')],
        annotations=[dict(id=k, image_id=k, caption=f'number {k}') for k in (1, 2)],
    )
    (tmp_path / 'c.json').write_text(json.dumps(content))
    given = dict(ann_file=str(tmp_path / 'c.json'), img_dir=str(tmp_path))
    with pytest.raises(ValueError, match='bad.png is not a readable image. Remove it'):
        ImageCaptions(given, 8)[0]
    with pytest.warns(UserWarning, match='bad.png is not a readable image; it is left out'):
        item = ImageCaptions(given, 8, on_error='skip')[0]
    assert item['caption'] == 'number 2' and (item['inputs'] == 7).all()


# ---- the metric -----------------------------------------------------------------------------------------------


def test_zero_shot_by_hand():
    names = ['red disc', 'red star', 'blue disc', 'blue star']
    metric = ZeroShotAccuracy(names, held_out=['blue star'], parts=('colour', 'shape'))
    # (label, guess): right; wrong shape; wrong in both; held out: right, and twice wrong in its colour
    for label, guess in [(0, 0), (0, 1), (1, 2), (3, 3), (3, 1), (3, 1)]:
        metric.process(None, [dict(label=torch.tensor(label), scores=torch.eye(4)[guess])])
    found = metric.evaluate(6)
    wanted = dict(
        all=100 / 3, all_colour=50, all_shape=200 / 3, all_images=6, seen=100 / 3, seen_colour=200 / 3, seen_shape=100 / 3,
        seen_images=3, heldout=100 / 3, heldout_colour=100 / 3, heldout_shape=100, heldout_images=3,
        chance=25, chance_colour=50, chance_shape=50,
    )  # fmt: skip
    assert found == pytest.approx({f'zero_shot/{key}': value for key, value in wanted.items()})


def test_metric_errors():
    with pytest.raises(ValueError, match=r"held_out has \['green disc'\]"):
        ZeroShotAccuracy(['red disc'], ['green disc'])
    with pytest.raises(ValueError, match=r"names 2 words, which class names \['disc'\] have not"):
        ZeroShotAccuracy(['disc'], parts=('colour', 'shape'))
    with pytest.raises(ValueError, match=r"needs scores and a label, a sample has \['embedding'\]"):
        ZeroShotAccuracy(['disc']).process(None, [dict(embedding=1)])
    with pytest.raises(ValueError, match=r'gives \(3,\) scores, the metric has 1 class_names'):
        ZeroShotAccuracy(['disc']).process(None, [dict(label=0, scores=torch.zeros(3))])


# ---- a training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(scenes, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    loader = dict(num_workers=0, collate_fn=dict(type='default_collate'))
    names = list(THINGS)
    cfg = dict(
        model=dict(type='mmdiffrep.ClipPretrainer', clip=TINY, vocabulary=names, class_names=names),
        train_dataloader=dict(
            batch_size=4, sampler=dict(type='InfiniteSampler'), dataset=dict(type='mmdiffrep.ImageCaptions', sources=source(scenes), size=16),
            **loader,
        ),
        val_dataloader=dict(
            batch_size=4, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='mmdiffrep.InstanceCrops', sources=instances(scenes, 'val_heldout'), size=16, class_names=names), **loader,
        ),
        val_evaluator=dict(type='mmdiffrep.ZeroShotAccuracy', class_names=names, held_out=list(HELD_OUT)),
        val_cfg=dict(), train_cfg=dict(by_epoch=False, max_iters=4, val_interval=4),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=100)),
        custom_hooks=[
            dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.3, gamma=2),
            dict(type='mmdiffrep.SaveClipHook', interval=3, name='test-run-clip', description='Toys.'),
        ],
        default_scope='mmengine', log_level='ERROR', randomness=dict(seed=0), work_dir=str(work_dir), experiment_name='test-clip',
    )  # fmt: skip
    runner = Runner.from_cfg(Config(cfg))
    runner.train()
    return runner, work_dir / 'open_clip'


def test_training_moves_every_weight_and_saves_the_average(trained):
    runner, folder = trained
    averaged = next(h for h in runner.hooks if isinstance(h, EMAHook)).ema_model.module.clip.cpu()
    begin = ClipPretrainer(TINY, list(THINGS)).clip.state_dict()
    loaded, _, tokenizer = load_clip(folder)
    for name, value in averaged.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert value.shape == begin[name].shape
    assert not torch.equal(loaded.visual.proj, runner.model.clip.visual.proj.cpu())
    ids = tokenizer(['a red disc'])
    assert torch.equal(ids, runner.model.tokenizer(['a red disc']))
    scores = runner.message_hub.log_scalars
    assert (
        'val/zero_shot/heldout' in scores
        and 'val/zero_shot/chance' in scores
        and 'train/logit_scale' in scores
    )
    card = (folder / 'README.md').read_text()
    for line in (
        'library_name: open_clip',
        'Toys.',
        'open_clip CLIP',
        'steps: 4, 16 images in batches of 4',
        'seed: 0',
    ):
        assert line in card, line
    assert not list(folder.parent.glob('.open_clip*'))


def test_a_failure_while_saving_leaves_the_old_folder(trained, monkeypatch):
    runner, folder = trained
    hook = next(h for h in runner.hooks if isinstance(h, SaveClipHook))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def fail(self, target, *_):
        target.mkdir()
        (target / 'open_clip_config.json').write_text('half')
        raise OSError('disk full')

    with monkeypatch.context() as patch:
        patch.setattr(ClipPretrainer, 'save_open_clip', fail)
        with pytest.raises(OSError, match='disk full'):
            hook.save(runner, 8)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    hook.save(runner, 9)
    assert 'steps: 9' in (folder / 'README.md').read_text()


def test_the_config_has_toyscenes_names():
    (path,) = (ROOT / 'configs/clip').glob('*toyscenes*.py')
    config = Config.fromfile(path)
    for part in (
        config.model.class_names,
        config.val_evaluator.class_names,
        config.val_dataloader.dataset.class_names,
    ):
        assert tuple(part) == THINGS
    assert tuple(config.val_evaluator.held_out) == HELD_OUT
    # every word of a caption is one token
    tokenizer = build_tokenizer(config.model.vocabulary, 80)
    for index in range(40):
        caption = generate_scene(0, index, (16, 16)).caption()
        words = caption.replace(',', ' ,').split()
        assert (tokenizer([caption]) == len(tokenizer.tokenizer) - 1).int().argmax() == len(
            words
        ) + 1, caption

"""tools/compare.py: cost against counts by hand, unfairness, equal cost, resuming, and a whole comparison."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmdiffrep.datasets.toyscenes import write_toyscenes
from mmdiffrep.utils.comparison import (
    fairness,
    images,
    logs,
    matching,
    memory,
    picture,
    pretraining,
    report,
    runs,
    text,
)
from mmdiffrep.utils.comparison.entries import Entry, make_entries, plain, short_names, usual_metric
from mmdiffrep.utils.comparison.flops import count_flops, count_parameters, weight_bytes

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('tools_compare', ROOT / 'tools' / 'compare.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- FLOPs, parameters, memory -----------------------------------------------------------------


def test_flops_of_a_small_network_by_hand():
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(8 * 4 * 6, 5))
    image = torch.randn(2, 3, 8, 12)
    conv = 2 * (8 * 4 * 6) * (3 * 3 * 3)  # a multiply-add for each output and each weight that it sees
    linear = 2 * 5 * (8 * 4 * 6)
    assert count_flops(lambda: network(image)) == 2 * (conv + linear)
    # backward: the gradient of the weights, and of the input of all but the first layer
    train = count_flops(lambda: network(image).sum().backward())
    assert train == 2 * (2 * conv + 3 * linear)


@pytest.mark.parametrize('grad', [False, True])
def test_attention_counts_on_the_cpu(grad):
    q, k = torch.randn(2, 4, 6, 8, requires_grad=grad), torch.randn(2, 4, 10, 8)
    with torch.set_grad_enabled(grad):
        attend = nn.functional.scaled_dot_product_attention
        assert count_flops(lambda: attend(q, k, k)) == 2 * 4 * 2 * (6 * 10 * 8) * 2  # scores, then values


def test_a_fused_transformer_layer_counts():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        counted = count_flops(lambda: layer(torch.randn(1, 5, 8)))
    projections = 2 * 5 * (8 * 24 + 8 * 8 + 8 * 16 + 16 * 8)
    assert counted == projections + 2 * (5 * 5 * 8) * 2
    assert torch.backends.mha.get_fastpath_enabled()


def test_parameters_with_frozen_ones_outside_the_tree(tiny_denoiser):
    from mmdiffrep.models.backbones.holder import DenoiserHolder

    denoiser = tiny_denoiser()
    denoiser.requires_grad_(False)
    part = denoiser.network.mid_block.requires_grad_(True)
    total = sum(p.numel() for p in denoiser.parameters())
    trained = sum(p.numel() for p in part.parameters())
    holder = DenoiserHolder(denoiser, ['mid_block'])
    model = nn.ModuleDict(dict(backbone=holder, head=nn.Linear(3, 2)))
    assert sum(p.numel() for p in model.parameters()) == trained + 8  # what torch sees
    assert count_parameters(model) == dict(
        parameters=total + 8, trained=trained + 8, outside=total - trained
    )
    assert weight_bytes(model) >= 4 * (total + 8)


def test_shared_parameters_count_once():
    layer = nn.Linear(3, 3)
    layer.listed = [layer]  # refers to itself outside the tree, too
    layer.bias.requires_grad_(False)
    counts = count_parameters(nn.Sequential(layer, layer))
    assert counts == dict(parameters=12, trained=9, outside=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason='main memory is measured without a GPU')
def test_peak_memory_is_the_call_s_own():
    held = torch.ones(30_000_000)  # of before: does not count
    peak = memory.peak_memory(lambda: torch.ones(20_000_000), weights=1000)
    assert 75_000_000 < peak < 115_000_000 and len(held)
    assert memory.peak_memory(lambda: None, weights=1000) < 20_000_000


@pytest.mark.skipif(sys.platform != 'linux', reason="what is freed is kept by Linux's C library")
def test_memory_that_is_used_again_counts():
    kept = []

    def call():
        blocks = [torch.ones(500_000) for _ in range(20)]
        kept.append(torch.ones(1000))  # above the others, so that they are not given back
        assert len(blocks) == 20

    torch.ones(4_000_000)  # glibc keeps freed blocks up to the largest size it has seen
    call()
    assert memory.peak_memory(call, weights=0) > 37_000_000


# --- what the configs say ----------------------------------------------------------------------


def backbone(**denoiser):
    denoiser['type'] = 'mmdiffrep.PixelUNet'
    return dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser)


@pytest.mark.parametrize(
    'config, expected',
    [
        (dict(model=dict(backbone=backbone(pretrained='mmdiffrep/toy-unet'))), 'mmdiffrep/toy-unet (frozen)'),
        (
            dict(model=dict(backbone=backbone(pretrained='a/256x256_diffusion.pt') | dict(trainable=['mid_block']))),
            'a/256x256_diffusion.pt (ImageNet, partly frozen)',
        ),
        (dict(model=dict(backbone=backbone(pretrained='x', random_seed=0))), 'random weights (frozen)'),
        (dict(model=dict(backbone=backbone(config=dict()) | dict(trainable=True))), 'random weights'),
        # mmseg hands model.pretrained down, and DiffusionBackbone does not use it
        (
            dict(model=dict(pretrained='open-mmlab://resnet50_v1c', backbone=backbone(pretrained='x/y'))),
            'x/y (frozen)',
        ),
        (
            dict(model=dict(pretrained='open-mmlab://resnet50_v1c', backbone=dict(type='ResNetV1c'))),
            'open-mmlab://resnet50_v1c (ImageNet)',
        ),
        (
            dict(model=dict(backbone=dict(
                type='ResNet', frozen_stages=1, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')
            ))),
            'torchvision://resnet50 (ImageNet, partly frozen)',
        ),
        (
            dict(model=dict(backbone=dict(type='TIMMBackbone', model_name='convnext.fb_in1k', pretrained=True))),
            'convnext.fb_in1k (ImageNet)',
        ),
        (dict(model=dict(encoder=dict(type='CLIP', pretrained=True))), "CLIP's own"),
        (
            dict(model=dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='https://a.b/c/net_in22k.pth')))),
            'net_in22k.pth (ImageNet-21k)',
        ),
        (dict(model=dict(backbone=dict(type='ResNet')), load_from='run/last.pth'), 'run/last.pth'),
        (dict(model=dict(backbone=dict(type='ResNet', init_cfg=dict(type='Kaiming')))), 'from scratch'),
    ],
)  # fmt: skip
def test_pretraining(config, expected):
    assert pretraining.describe(Config(config)) == expected
    nothing = expected == 'from scratch' or expected.startswith('random')
    assert pretraining.is_pretrained(Config(config)) == (not nothing)


def test_the_card_beside_the_weights(tiny_folder):
    assert 'ToyScenes' in pretraining.card('mmdiffrep/toy-unet')
    assert pretraining.card(str(tiny_folder)) is None
    assert pretraining.card('torchvision://resnet50') is None


@pytest.mark.parametrize(
    'config, expected',
    [
        (dict(crop_size=(4, 6), model=dict(data_preprocessor=dict(size=(8, 8)))), (4, 6)),
        (dict(model=dict(data_preprocessor=dict(size=(8, 10)))), (8, 10)),
        (dict(train_dataloader=dict(dataset=dict(dataset=dict(pipeline=[dict(type='mmseg.RandomCrop', crop_size=(3, 5))])))), (3, 5)),
        (dict(val_dataloader=dict(dataset=dict(pipeline=[dict(type='Resize', scale=(1333, 800))]))), (800, 1333)),
        (dict(model=dict()), None),
    ],
)  # fmt: skip
def test_image_size(config, expected):
    assert images.image_size(Config(config)) == expected


BASE = dict(
    model=dict(backbone=dict(type='ResNet'), decode_head=dict(num_classes=13), test_cfg=dict(mode='whole')),
    train_dataloader=dict(batch_size=4, dataset=dict(
        type='ToyScenes', data_root='data', num_labels=20, pipeline=[
            dict(type='LoadImageFromFile'), dict(type='RandomCrop', crop_size=(64, 64)), dict(type='RandomFlip', prob=0.5)])),
    val_dataloader=dict(dataset=dict(type='ToyScenes', data_root='data', pipeline=[dict(type='Load')])),
    val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
    train_cfg=dict(by_epoch=False, max_iters=300),
    optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
    param_scheduler=[dict(type='PolyLR', end=300)],
)  # fmt: skip


def side(name, cost=None, sources=('validation',), **options):
    cfg = Config(BASE)
    cfg.merge_from_dict(options, allow_list_keys=True)
    return fairness.Side(name, cfg, cost or {}, sources)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('train_dataloader.dataset.data_root', 'other', 'training data, data_root: data in a; other in b'),
        ('train_dataloader.dataset.num_labels', 200, 'labelled images: 20 in a; 200 in b'),
        (
            'train_dataloader.dataset.subset_seed', 1,
            'choice of the labelled images (subset_seed): 0 in a; 1 in b',
        ),
        ('train_dataloader.dataset.pipeline.1.crop_size', (32, 48), 'crop: RandomCrop 64×64 in a; RandomCrop 32×48 in b'),
        (
            'train_dataloader.dataset.pipeline.2.prob', 0.1,
            'training pipeline: RandomFlip(prob=0.5) in a; RandomFlip(prob=0.1) in b',
        ),
        ('train_dataloader.batch_size', 8, 'batch size: 4 in a; 8 in b'),
        ('train_cfg.max_iters', 600, 'length of the training: 300 iterations in a; 600 iterations in b'),
        (
            'param_scheduler.0.end', 600,
            'learning-rate schedule: PolyLR(end=300) in a; PolyLR(end=600) in b',
        ),
        ('model.decode_head.num_classes', 12, 'classes: 13 in a; 12 in b'),
        ('val_dataloader.dataset.data_root', 'other', 'evaluation data, data_root: data in a; other in b'),
        (
            'val_evaluator.iou_metrics', ['mDice'],
            "metric: IoUMetric(iou_metrics=['mIoU']) in a; IoUMetric(iou_metrics=['mDice']) in b",
        ),
        ('model.test_cfg.mode', 'slide', 'inference, mode: whole in a; slide in b'),
        ('model.backbone.init_cfg', dict(type='Pretrained', checkpoint='x'), 'pre-training: from scratch in a; x in b'),
    ],
)  # fmt: skip
def test_unfairness(key, value, message):
    found = fairness.compare([side('a'), side('b', **{key: value})])
    assert found == fairness.Findings([message], [])


def test_what_may_differ_is_only_noted():
    found = fairness.compare([side('a'), side('b', **{'optim_wrapper.optimizer.lr': 0.2})])
    assert found == fairness.Findings([], ['optimizer, optimizer.lr: 0.1 in a; 0.2 in b'])
    init = 'model.backbone.init_cfg'
    sides = [side(n, **{init: dict(type='Pretrained', checkpoint=n)}) for n in 'xy']
    assert fairness.compare(sides).notes == ['pre-training: x in x; y in y']
    assert fairness.compare([side('a'), side('b'), side('c')]) == fairness.Findings([], [])


def test_unfairness_as_measured():
    # 20 labels asked for and all of 20 are the same
    counted = dict(train_images=20, eval_images=5, image_size=[64, 64], device='CPU')
    more = {'train_dataloader.dataset.num_labels': None}
    assert fairness.compare([side('a', counted), side('b', counted, **more)]).unfair == []
    other = dict(counted, eval_images=6, image_size=[32, 64])
    assert fairness.compare([side('a', counted), side('b', other, ['test'])]).unfair == [
        'images evaluated on: 5 in a; 6 in b',
        'metric taken from: validation in a; test in b',
        'image size of the measured cost: 64×64 in a; 32×64 in b',
    ]


# --- logs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'train_cfg, logged_by_epoch, steps, shares',
    [
        (dict(by_epoch=False, max_iters=10), False, [4, 8, 10], [0.4, 0.8, 1]),
        (dict(type='IterBasedTrainLoop', max_iters=9, val_interval=3), True, [0] * 3, [1 / 3, 2 / 3, 1]),
        (dict(by_epoch=False, max_iters=10, val_interval=2, val_begin=5), True, [0, 0], [0.6, 0.8]),
        (dict(max_epochs=4), True, [1, 4], [0.25, 1]),
        (dict(by_epoch=True, max_epochs=4, val_interval=2), False, [50, 100], [0.5, 1]),
    ],
)
def test_progress_of_validations(train_cfg, logged_by_epoch, steps, shares):
    hooks = dict(logger=dict(log_metric_by_epoch=logged_by_epoch))
    cfg = Config(dict(train_cfg=train_cfg, default_hooks=hooks))
    assert [logs.progress(cfg, k, step) for k, step in enumerate(steps)] == pytest.approx(shares)


def write_log(folder, records, stamp='20260101_000000'):
    file = folder / stamp / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('\n'.join(map(json.dumps, records)))


def test_the_newest_log_is_read(tmp_path):
    write_log(tmp_path, [dict(mIoU=99, time=1, step=1)])
    new = [
        dict(lr=1, acc_seg=2, time=0.5, iter=1, step=1), {'val/time': 9, 'step': 2},
        {'val/mIoU': 3.0, 'val/time': 9, 'step': 4}, dict(from_a_hook=1, step=4),
    ]  # fmt: skip
    write_log(tmp_path, new, '20260102_000000')
    log = logs.read_training(tmp_path)
    assert log.validations == [(2, {}), (4, dict(mIoU=3.0))] and log.iteration_seconds == [0.5]
    assert logs.read_training(tmp_path / 'none').validations == []
    test = tmp_path / '20260103_000000' / '20260103_000000.json'
    test.parent.mkdir()
    test.write_text('{"coco_panoptic/PQ": 1.5, "time": 3, "classes": ["a"]}')
    assert logs.read_test(tmp_path) == {'coco_panoptic/PQ': 1.5}


# --- equal cost --------------------------------------------------------------------------------


def result(*points, iteration_seconds=None):
    found = [(share, dict(mIoU=value)) for share, value in points]
    return runs.Result(found, 'validation', 9.0, iteration_seconds)


def test_interpolation_by_hand():
    curve = [(10.0, 20.0), (20.0, 30.0), (40.0, 34.0)]
    at = [matching.at_cost(curve, cost) for cost in (5, 10, 15, 30, 40, 41)]
    assert at == [None, 20, 25, 32, 34, None]


def test_runs_are_read_at_the_smallest_total_cost():
    found = {
        'small': [result((0.5, 10.0), (1, 20.0)), result((0.5, 12.0), (1, 22.0))],
        'large': [result((0.25, 8.0), (0.5, 16.0), (1, 40.0))] * 2,
        'late': [result((1, 50.0))] * 2,
    }
    totals = dict(small=[300.0, 300.0], large=[800.0, 800.0], late=[900.0, 900.0])
    matched = matching.match(found, totals, 'mIoU', 'flops')
    assert matched.budget == 300
    # 300 of 800 lies half-way between the validations at 200 and 400
    assert matched.values == dict(small=[20, 22], large=[12, 12], late=[None, None])
    assert matched.shares == dict(small=1, large=0.375, late=pytest.approx(1 / 3))
    assert matched.notes[0].startswith('late has just one validation point, the first at 900 FLOPs')
    assert 'had not finished its learning-rate schedule' in matched.notes[1]


def test_training_cost():
    iters = Config(dict(train_cfg=dict(by_epoch=False, max_iters=30)))
    epochs = Config(dict(train_cfg=dict(max_epochs=3)))
    cost = dict(train_flops=7, train_batch=4, epoch_iterations=5, problems=['why'])
    run = result((1, 1.0), iteration_seconds=0.5)
    spent = [
        matching.training_cost(cfg, cost, run, unit)
        for cfg in (iters, epochs)
        for unit in matching.UNITS
    ]
    assert spent == [210, 15, 120, 105, 7.5, 60]
    with pytest.raises(ValueError, match='FLOPs of a training iteration is not known: why'):
        matching.training_cost(iters, dict(problems=['why']), run, 'flops')
    with pytest.raises(ValueError, match='logger.interval'):
        matching.training_cost(iters, cost, result((1, 1.0)), 'seconds')


# --- report ------------------------------------------------------------------------------------


COST = dict(
    parameters=1_790_000, trained=2510, flops=717_000_000, images_per_second=27.4, memory=11_400_000,
    image_size=[64, 64], images='drawn', batch_size=1, memory_kind='main memory', device='CPU', threads=1,
)  # fmt: skip


def comparison(*results, cost=COST, **options):
    lines = [
        report.Line(f'net-{k}_x', f'net-{k}', Config(BASE), cost, list(each))
        for k, each in enumerate(results)
    ]
    findings = fairness.compare([fairness.Side(line.short, line.cfg, line.cost) for line in lines])
    return report.Comparison(lines, ['mIoU'], '20-labels', findings, **options)


def test_the_table():
    low = [result((1, 10.0), iteration_seconds=0.2), result((1, 12.0))]
    high = [result((1, 20.0)), result((1, 22.0))]
    shown = report.markdown(comparison(low, high)).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in shown[:4]]
    assert cells[0] == [
        '20-labels', 'mIoU', 'mIoU of each seed', 'parameters', 'trained', 'FLOPs', 'images/s', 'memory', 'it/s',
        'pre-trained on',
    ]  # fmt: skip
    costs = ['1.79 M', '2.51 k', '717 M', '27.4', '11.4 MB']
    assert cells[2] == ['net-1_x', '21.0 ± 1.4', '20.0, 22.0', *costs, '–', 'from scratch']
    assert cells[3] == ['net-0_x', '11.0 ± 1.4', '10.0, 12.0', *costs, '5.00', 'from scratch']
    assert len({len(line) for line in shown[:4]}) == 1  # columns stand below each other
    assert 'No unfairness was found' in shown[5]


def test_markdown_tells_what_is_unfair_and_what_is_at_equal_cost():
    outcome = comparison([result((1, 0.5))], [result((0.5, 0.3), (1, 0.4))])
    outcome.findings = fairness.Findings(['batch size: 4 in a; 8 in b'], ['optimizer, lr: 1 in a; 2 in b'])
    results = {line.name: line.results for line in outcome.lines}
    totals = {'net-0_x': [5e9], 'net-1_x': [7.5e9]}
    outcome.matched = [matching.match(results, totals, 'mIoU', 'flops')]
    shown = report.markdown(outcome)
    assert '**Unfair comparison:**\n\n- batch size: 4 in a; 8 in b\n\nAlso different, which may be' in shown
    assert 'At equal cost of training, 5.00 GFLOPs (the cheapest run' in shown
    assert '| net-1_x | 0.333 |                  67 % |     0.333 |' in shown
    assert '2 FLOPs a multiply-add' in shown


@pytest.mark.parametrize(
    'evaluator, metric',
    [
        (dict(type='mmseg.IoUMetric'), 'mIoU'),
        ([dict(type='mmdiffrep.DDPMSegIoU'), dict(type='mmdiffrep.ClassAccuracy')], 'accuracy/top1'),
        (dict(type='mmdiffrep.PanopticQuality'), 'panoptic/PQ'),
        (dict(type='mmdiffrep.PCK'), 'pck/box-per-point@0.1'),
        (None, 'mIoU'),
    ],
)
def test_the_metric_that_an_evaluator_is_known_by(evaluator, metric):
    assert usual_metric(Config(dict(val_evaluator=evaluator))) == metric
    assert usual_metric(Config(dict(test_evaluator=evaluator))) == metric


def test_numbers():
    assert [text.amount(x) for x in (0, 5, 0.0123, 12.34, 999.7, 1234, 4.4e7, 2.5e15, None)] == [
        '0', '5', '0.0123', '12.3', '1.00 k', '1.23 k', '44.0 M', '2.50 P', '–'
    ]  # fmt: skip
    assert (text.spread([0.5, 0.7]), text.spread([33.3]), text.spread([1, None])) == ('0.600 ± 0.141', '33.3', '–')


def test_csv_and_data():
    paces = ((10.0, 0.1), (12.0, 0.3))
    outcome = comparison([result((1, value), iteration_seconds=pace) for value, pace in paces])
    rows = list(csv.DictReader(report.csv_text(outcome).splitlines()))
    assert [(row['config'], row['seed'], row['mIoU'], row['flops']) for row in rows] == [
        ('net-0_x', '0', '10.0', '717000000'), ('net-0_x', '1', '12.0', '717000000')
    ]  # fmt: skip
    assert float(rows[0]['iterations_per_second']) == 5
    data = json.loads(json.dumps(report.as_data(outcome)))
    assert data['configs'][0]['runs'][1]['curve'] == [[1, {'mIoU': 12.0}]]


@pytest.mark.parametrize('cost', picture.AXES)
def test_the_picture(cost):
    low, high = [result((1, 10.0)), result((1, 12.0))], [result((1, 20.0)), result((1, 22.0))]
    outcome = comparison(low, high)
    png, left_out = picture.draw(outcome, cost)
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == (750, 1200, 3) and left_out == []
    colours = ((178, 114, 0), (0, 94, 213))  # BGR
    blue, red = (np.abs(drawn.astype(int) - colour).sum(-1) < 30 for colour in colours)
    assert blue.sum() > 100 and red.sum() > 100  # a colour for each
    assert np.nonzero(blue)[0].mean() < np.nonzero(red)[0].mean()  # the better one is higher


def test_the_picture_leaves_out_what_has_no_cost():
    assert picture.draw(comparison([result((1, 1.0))], cost=dict(flops=None)))[1] == ['net-0_x']
    with pytest.raises(ValueError, match="--cost 'money' is unknown; allowed: flops, params"):
        picture.draw(comparison([result((1, 1.0))]), 'money')


# --- entries -----------------------------------------------------------------------------------

CONFIG = """
_base_ = ['base.py']
train_dataloader = dict(batch_size=2)
train_cfg = dict(by_epoch=False, max_iters=10)
default_hooks = dict(logger=dict(log_metric_by_epoch=False))
val_dataloader, val_cfg, val_evaluator = dict(batch_size=1), dict(), dict(type='Metric')
test_dataloader, test_cfg, test_evaluator = val_dataloader, val_cfg, val_evaluator
"""


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """Two configs with a base, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path('base.py').write_text('number = 1')
    for name in ('net-a_10i.py', 'net-b_10i.py'):
        Path(name).write_text(CONFIG)
    return ['net-a_10i.py', 'net-b_10i.py']


def test_the_key_changes_with_all_that_matters(configs):
    Path('w.pth').write_text('1')
    keys = {Entry('x', configs[0]).key(0), Entry('x', configs[0]).key(1), Entry('x', configs[0], ('number=3',)).key(0)}
    keys.add(Entry('x', configs[0], checkpoint='w.pth').key(0))
    Path('w.pth').write_text('12')
    keys.add(Entry('x', configs[0], checkpoint='w.pth').key(0))
    Path('base.py').write_text('number = 2')
    keys.add(Entry('x', configs[0]).key(0))
    assert len(keys) == 6
    assert Entry('y', configs[0]).key(0) in keys  # not with the name
    assert Entry('x', configs[0], ('number={seed}',)).config(7).number == 7


def test_names(configs):
    Path('other').mkdir()
    Path('other/base.py').write_text('')
    Path('other/net-a_10i.py').write_text(CONFIG)
    here = Path.cwd().name
    assert [e.name for e in make_entries([*configs, 'other/net-a_10i.py'])] == [
        f'{here}/net-a_10i', 'net-b_10i', 'other/net-a_10i'
    ]  # fmt: skip
    for run in '12':
        Path(f'run{run}').mkdir()
        Path(f'run{run}/last.pth').touch()
    tested = make_entries([configs[0]] * 2, checkpoints=['run1/last.pth', 'run2/last.pth'])
    assert [e.name for e in tested] == ['net-a_10i@run1-last', 'net-a_10i@run2-last']
    assert short_names(['a_x_1_z', 'a_y_1_z', 'a_x-y_1_z']) == ['x', 'y', 'x-y']
    assert short_names(['a_b', 'a_b_c']) == ['b', 'b_c'] and short_names(['a_b']) == ['a_b']


def test_plain_is_the_same_in_every_process():
    value = plain(dict(a=(1, nn.Linear), b=object()))
    assert value == dict(a=[1, 'torch.nn.modules.linear.Linear'], b='<object object>')


# --- the tool ----------------------------------------------------------------------------------


class Stand:
    """In the place of processes: logs of trainings, tests and measurements, without any."""

    def __init__(self):
        self.calls, self.fail_at = [], None

    def __call__(self, command, log):
        self.calls.append(command)
        log.write_text('first line\nout of luck\n')
        if len(self.calls) == self.fail_at:
            return 3
        values = dict(zip(command, command[1:]))
        seed = float(values['--seed'])
        if '-m' in command:
            Path(values['--out']).write_text(json.dumps(dict(COST, train_flops=300, problems=[])))
        elif command[1].endswith('train.py'):
            first, last = (dict(mIoU=2.0 * n + seed, aAcc=80.0, time=1, step=n) for n in (5, 10))
            write_log(Path(values['--work-dir']), [dict(iter=1, time=0.5), first, last])
        else:
            assert Path(command[3]).is_file()
            file = Path(values['--work-dir'], '1', '1.json')
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(dict(mIoU=30.0 + seed)))
        return 0


@pytest.fixture
def stand(monkeypatch):
    stand = Stand()
    monkeypatch.setattr(runs, 'launch', stand)
    return stand


def test_an_interrupted_comparison_goes_on(tool, configs, stand, capsys):
    argv = [*configs, '--seeds', '2', '--work-dir', 'out', '--tag', 't', '--metric', 'mIoU', 'aAcc']
    stand.fail_at = 5  # two measurements, two runs, then
    assert tool.main(argv) == 1
    assert 'training net-b_10i with seed 0 failed (status 3)' in capsys.readouterr().err
    stand.calls.clear()
    stand.fail_at = None
    assert tool.main(argv) == 0
    assert [command[1:3] for command in stand.calls] == [[str(tool.TOOLS / 'train.py'), 'net-b_10i.py']] * 2
    out = capsys.readouterr().out
    assert '[2/4] net-a_10i seed 1: mIoU 21.0, aAcc 80.0 (done before)' in out
    assert '[3/4] net-b_10i seed 0: mIoU 20.0, aAcc 80.0 (0 s), about 0 min left' in out
    assert '| 20.5 ± 0.7 | 80.0 ± 0.0 |' in out
    assert sorted(path.name for path in Path('out').iterdir()) == ['t', 't.csv', 't.json', 't.md', 't.png']
    stand.calls.clear()
    assert tool.main([*argv[:-1], '--match', 'flops']) == 0 and not stand.calls  # asks for less: all is there
    Path('base.py').write_text('number = 2')
    assert tool.main(argv) == 0 and len(stand.calls) == 6  # an edit of a base repeats everything


def test_testing_checkpoints(tool, configs, stand, capsys):
    for seed in '01':
        Path(f'a-{seed}.pth').touch()
    Path('b.pth').touch()
    argv = [*configs, '--test', 'a-{seed}.pth', 'b.pth', '--work-dir', 'out']
    assert tool.main([*argv, '--seeds', '2']) == 0
    assert [c[3] for c in stand.calls[2:]] == ['a-0.pth', 'a-1.pth', 'b.pth', 'b.pth']
    assert 'checkpoints were tested' in capsys.readouterr().out
    stand.calls.clear()
    assert tool.main(argv) == 0 and not stand.calls  # one seed by default


def test_a_config_that_does_not_validate_is_tested(tool, configs, stand, monkeypatch):
    def call(command, log):
        status = Stand.__call__(stand, command, log)
        if command[1].endswith('train.py'):
            write_log(log.parent, [dict(iter=1, time=0.5)])
            Path('w.pth').touch()
            (log.parent / 'last_checkpoint').write_text('w.pth')
        return status

    monkeypatch.setattr(runs, 'launch', call)
    assert tool.main([configs[0], '--seeds', '1', '--work-dir', 'out']) == 0
    run = json.loads(Path('out/all.json').read_text())['configs'][0]['runs'][0]
    assert (run['source'], run['curve']) == ('test', [[1.0, {'mIoU': 30.0}]])


def test_a_run_without_a_metric_fails(tool, configs, stand, monkeypatch, capsys):
    def call(command, log):
        status = Stand.__call__(stand, command, log)
        if command[1].endswith('train.py'):
            write_log(log.parent, [dict(iter=1, time=0.5), dict(time=1, step=5)])
        return status

    monkeypatch.setattr(runs, 'launch', call)
    assert tool.main([configs[0], '--work-dir', 'out']) == 1
    assert 'none of its validations gave a metric' in capsys.readouterr().err


def test_mistakes_are_one_line(tool, configs, stand, capsys):
    def error(*argv, status=2):
        assert tool.main([*argv, '--work-dir', 'out']) == status
        told = capsys.readouterr().err
        assert told.startswith('error: ') and 'Traceback' not in told
        return told

    assert 'Nearest: ' in error('pixels_linear_300i_toyscenes-63x63.py')
    assert '--seeds 0 does not fit' in error(configs[0], '--seeds', '0')
    assert 'There is no .pth or .safetensors file' in error(configs[0], '--test', 'none.pth')
    assert '2 configs and 1 checkpoints were given' in error(*configs, '--test', 'none.pth')
    assert 'net-a_10i.py is given twice' in error(configs[0], configs[0])
    assert "'number' is not of the form KEY=VALUE" in error(configs[0], '--cfg-options', 'number')
    assert '--size 0 4 does not fit' in error(configs[0], '--size', '0', '4')
    assert 'leave it out with --test' in error(configs[0], '--test', 'x', '--match', 'flops')
    told = error(configs[0], '--metric', 'miou')
    assert "--metric 'miou' was not logged; logged: aAcc, mIoU. Did you mean 'mIoU'?" in told
    Path('broken.py').write_text('a = b')
    assert 'config broken.py cannot be read' in error('broken.py')
    Path('empty.py').write_text('model = dict()')
    assert 'there is nothing to train' in error('empty.py')
    Path('blind.py').write_text('train_dataloader = dict()')
    assert 'it gives no metric to compare' in error('blind.py')
    stand.fail_at = len(stand.calls) + 1
    told = error(configs[1], status=1)
    assert 'measuring net-b_10i failed (status 3)' in told and '  out of luck' in told


def test_launch_keeps_output_and_status(tmp_path):
    code = 'import sys; print(1); print(2, file=sys.stderr); sys.exit(3)'
    assert runs.launch([sys.executable, '-c', code], tmp_path / 'log.txt') == 3
    assert sorted((tmp_path / 'log.txt').read_text().split()) == ['1', '2']


# --- a whole comparison ------------------------------------------------------------------------


@pytest.fixture(scope='module')
def processes(tmp_path_factory):
    """A ``runs.launch`` that forks what has imported everything already: see train_server.py."""
    folder = tmp_path_factory.mktemp('server')
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    with (folder / 'server.log').open('w') as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name('train_server.py'))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=folder,
        )  # fmt: skip

    def launch(command, log):
        script, *argv = command[2:] if command[1] == '-m' else command[1:]
        request = dict(script=script, argv=argv, env={}, log=str(log))
        process.stdin.write(json.dumps([request]) + '\n')
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, (folder / 'server.log').read_text()
        return json.loads(answer)[0]

    yield launch
    process.stdin.close()
    process.wait()


TINY = """
_base_ = [{base!r}]
crop_size = (32, 32)
model = dict(data_preprocessor=dict(size=(32, 32)), {model})
data = dict(data_root={data!r})
train_dataloader = dict(batch_size=2, dataset=data)
val_dataloader = dict(batch_size=2, dataset=data)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=2)
param_scheduler = [dict(type='PolyLR', by_epoch=False, begin=0, end=4)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4))
"""
FEATURES = """
    backbone=dict(taps=['up_blocks.1.resnets.1', 'up_blocks.2.resnets.1'], denoiser=dict(pretrained={folder!r})),
    decode_head=dict(in_channels=24, channels=24)
"""
HAND = 2 * 13 * 3 * 8 * 8  # a 1×1 convolution of 3 channels to 13 classes at a quarter of 32×32


def test_three_configs_and_two_seeds(tool, processes, tiny_folder, monkeypatch, tmp_path, capsys):
    data = write_toyscenes(tmp_path / 'toyscenes', dict(train=6, val=2), size=(32, 32))
    paths = []
    for name in ('diffusion_toy-unet', 'diffusion_toy-unet-random', 'pixels'):
        base = ROOT / 'configs' / 'linear' / f'{name}_linear_300i_toyscenes-64x64.py'
        model = FEATURES.format(folder=str(tiny_folder)) if name != 'pixels' else ''
        paths.append(str(tmp_path / f'{name}_tiny.py'))
        Path(paths[-1]).write_text(TINY.format(base=str(base), data=str(data), model=model))
    monkeypatch.setattr(runs, 'launch', processes)
    out = tmp_path / 'out'
    argv = [*paths, '--seeds', '2', '--work-dir', str(out), '--tag', '4-labels', '--match', 'images']
    options = ['train_dataloader.dataset.num_labels=4', 'train_dataloader.dataset.subset_seed={seed}']
    assert tool.main([*argv, '--cfg-options', *options]) == 0
    written = json.loads((out / '4-labels.json').read_text())
    learned, random, pixels = (entry['cost'] for entry in written['configs'])
    assert pixels['flops'] == HAND and pixels['parameters'] == pixels['trained'] == 52
    assert pixels['train_flops'] == 2 * 2 * HAND  # two images, forward and the weights' gradient
    assert learned['trained'] == 24 * 13 + 13
    assert learned['parameters'] == learned['trained'] + learned['outside'] == random['parameters']
    assert learned['flops'] == random['flops'] > 100 * HAND
    for entry in written['configs']:
        cost = entry['cost']
        assert cost['problems'] == [] and cost['memory'] > 0 and cost['images_per_second'] > 0
        assert (cost['train_images'], cost['eval_images'], cost['train_batch']) == (4, 2, 2)
        assert [[share for share, _ in run['curve']] for run in entry['runs']] == [[0.5, 1.0]] * 2
        assert entry['iterations_per_second'] > 0
    assert written['unfair'] == [
        f'pre-training: {tiny_folder} (frozen) in diffusion_toy-unet; random weights (frozen) in '
        'diffusion_toy-unet-random; from scratch in pixels'
    ]
    assert written['notes'] == [] and written['at_equal_cost'][0]['budget'] == 8
    assert (out / '4-labels.png').stat().st_size > 10_000
    assert '**Unfair comparison:**' in capsys.readouterr().out

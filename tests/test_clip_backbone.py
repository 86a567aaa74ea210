"""ClipBackbone: the stages of a convolutional CLIP, frozen, out of checkpoints."""

import copy
import importlib
import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule, ExponentialMovingAverage
from mmengine.registry import DefaultScope
from torch import nn

import mmdiffrep  # before the toolkits
from mmdiffrep.models.backbones import ClipBackbone
from mmdiffrep.openvocab import build_clip, build_tokenizer, save_clip
from mmdiffrep.openvocab.conv_tower import ConvTower, load_conv_tower
from mmdiffrep.registry import MODELS

open_clip = pytest.importorskip('open_clip')
timm = pytest.importorskip('timm')

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
OWN_MEAN, OWN_STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)  # of the tiny CLIP's images in [0, 1]
TEXT = dict(context_length=8, width=8, layers=1, heads=1, vocab_size=600)
PYRAMID = dict(type='mmdiffrep.StridePyramid', out_channels=8, width=8, groups=2)
STRIDES = (4, 8, 16, 32)


def architecture(network='test_convnext', **vision):
    if network == 'ModifiedResNet':
        vision = dict(layers=[1, 2, 1, 1], width=8, head_width=8, image_size=64, **vision)
    elif network == 'ViT':
        vision = dict(layers=1, width=16, head_width=8, patch_size=16, image_size=64, **vision)
    else:
        vision = dict(
            timm_model_name=network, timm_model_pretrained=False, timm_pool='', timm_proj='linear', image_size=64, **vision
        )  # fmt: skip
    return dict(embed_dim=6, vision_cfg=vision, text_cfg=TEXT)


CHANNELS = dict(
    test_convnext=[24, 32, 48, 64],
    test_resnet=[32, 48, 192, 96],
    test_efficientnet=[24, 32, 48, 64],
    ModifiedResNet=[32, 64, 128, 256],
)


def clip(network='test_convnext', seed=0, **vision):
    """A CLIP all of whose parts matter: layer scales begin at 1e-6, and a residual branch at 0, which would hide its block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(architecture(network, **vision)).eval()
        for name, value in model.named_parameters():
            value.data += 0.1 * torch.randn_like(value)
            if name.endswith('gamma'):
                value.data += 0.5
        for name, value in model.named_buffers():
            if name.endswith('running_mean'):
                value.copy_(0.1 * torch.randn_like(value))
    return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Folders in open_clip's format with their models: ``folders('test_convnext', seed=0)``."""
    made, tokenizer = {}, build_tokenizer(['a red disc'], 8)

    def folder(network='test_convnext', seed=0):
        key = f'{network}-{seed}'
        if key not in made:
            path, model = tmp_path_factory.mktemp('clips') / key, clip(network, seed)
            preprocess = dict(mean=OWN_MEAN, std=OWN_STD)
            save_clip(
                model, architecture(network), tokenizer, path, 'tiny', torch.float32, preprocess
            )
            made[key] = path, model
        return made[key]

    return folder


def build(**options):
    options.setdefault('config', architecture())
    return MODELS.build(dict(type='mmdiffrep.ClipBackbone', **options))


def raw(*shape, seed=0):
    """8-bit RGB images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape or (2, 3, 64, 96), generator=generator).float()


def column(values):
    return torch.tensor(values).view(-1, 1, 1)


def picture(*shape, seed=0):
    """The same, normalised as stock configs do."""
    return (raw(*shape, seed=seed) - column(MEAN)) / column(STD)


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


# ---- maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('network', list(CHANNELS))
def test_maps_are_what_clip_sees(folders, network):
    """What passes between the stages while open_clip encodes the images, normalised by hand."""
    path, model = folders(network)
    visual = model.visual
    trunk = getattr(visual, 'trunk', visual)
    parts = dict(
        test_convnext=lambda: list(trunk.stages),
        test_efficientnet=lambda: [trunk.blocks[k] for k in (1, 2, 3, 4)],
    ).get(network, lambda: [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4])()
    seen = []
    hooks = [
        part.register_forward_hook(lambda _m, _a, out: seen.append(out.clone())) for part in parts
    ]
    image = raw(2, 3, 64, 64 if network == 'ModifiedResNet' else 96)  # its pooling takes one size
    with torch.no_grad():
        model.encode_image((image / 255 - column(OWN_MEAN)) / column(OWN_STD))
    for hook in hooks:
        hook.remove()
    backbone = ClipBackbone(name=str(path))
    maps = backbone((image - column(MEAN)) / column(STD))
    assert [x.shape[1] for x in maps] == backbone.out_channels == CHANNELS[network]
    for got, want in zip(maps, seen, strict=True):
        assert relative(got, want) < 1e-5 and want.std() > 0.01


def test_maps_are_timms_features_only(folders):
    path, model = folders()
    plain = timm.create_model('test_convnext', features_only=True).eval()
    renamed = {
        key.replace('stages.', 'stages_', 1).replace('stem.', 'stem_', 1): value
        for key, value in model.visual.trunk.state_dict().items()
    }
    missing = plain.load_state_dict(renamed, strict=False).missing_keys
    assert not missing
    image = raw()
    with torch.no_grad():
        wanted = plain((image / 255 - column(OWN_MEAN)) / column(OWN_STD))
    for got, want in zip(ClipBackbone(name=path)(picture()), wanted, strict=True):
        assert relative(got, want) < 1e-5


@pytest.mark.parametrize('size', [(64, 64), (32, 96), (37, 70), (5, 33)])
def test_declared_channels_and_strides_are_real(size):
    for options in (
        {},
        dict(adapter=PYRAMID),
        dict(out_indices=(0, 2)),
        dict(out_indices=[3]),
        dict(out_indices=(0, 1), adapter=dict(type='mmdiffrep.ConcatUpsample')),
        dict(config=architecture('ModifiedResNet')),
        dict(config=architecture('ModifiedResNet'), out_indices=(1, 2)),
    ):
        backbone = build(**options)
        maps = backbone(picture(1, 3, *size))
        assert [x.shape[1] for x in maps] == backbone.out_channels
        wanted = [tuple(-(-n // s) for n in size) for s in backbone.out_strides]
        assert [tuple(x.shape[-2:]) for x in maps] == wanted
        assert all(x.isfinite().all() for x in maps)
        told = [(info.channels, info.stride) for info in backbone.tap_infos]
        assert told == [
            (x.shape[1], STRIDES[k])
            for x, k in zip(backbone.features(picture(1, 3, *size)), backbone.tower.stages)
        ]


def test_an_odd_image_is_padded_by_its_border():
    """40×72 is seen as 64×96, its last row and column repeated; maps whose stride does not divide it are resampled to cover it."""
    backbone = build()
    image = picture(1, 3, 40, 72)
    padded = image[..., [*range(40), *[39] * 24], :][..., [*range(72), *[71] * 24]]
    got, whole = backbone(image), backbone(padded)
    assert torch.equal(got[0], whole[0][..., :10, :18])
    assert torch.equal(got[1], whole[1][..., :5, :9])
    assert got[2].shape[-2:] == (3, 5) and got[3].shape[-2:] == (2, 3)
    # the second of 3 rows over 40 pixels is centred at 20, three quarters of the way from the first cell of 16 to the second;
    # the first of 5 columns over 72 pixels at 7.2, outside the centres of the cells
    first, second = whole[2][0, :, 0, 0], whole[2][0, :, 1, 0]
    torch.testing.assert_close(got[2][0, :, 1, 0], first / 4 + second * 3 / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('network', ['test_convnext', 'test_resnet', 'ModifiedResNet'])
def test_fewer_stages_are_the_same_maps_of_a_smaller_network(folders, network):
    path, _ = folders(network)
    whole, part = ClipBackbone(name=path), ClipBackbone(name=path, out_indices=(0, 2))
    maps = whole(picture())
    for got, k in zip(part(picture()), (0, 2), strict=True):
        assert torch.equal(got, maps[k])
    sizes = [sum(p.numel() for p in backbone.tower.parameters()) for backbone in (part, whole)]
    assert sizes[0] < 0.7 * sizes[1]
    assert part.holder.fingerprint == whole.holder.fingerprint


def test_range_and_channel_order_do_not_matter_once_they_are_told(folders):
    path, _ = folders()
    image = raw()
    expected = ClipBackbone(name=path)(picture())
    for given, options in [
        (image, dict(image_mean=(0, 0, 0), image_std=(1, 1, 1))),
        (image / 255, dict(image_mean=(0, 0, 0), image_std=(255, 255, 255))),
        (picture().flip(1), dict(image_mean=MEAN[::-1], image_std=STD[::-1], bgr=True)),
    ]:
        for got, want in zip(ClipBackbone(name=path, **options)(given), expected, strict=True):
            assert relative(got, want) < 1e-4
    assert relative(ClipBackbone(name=path, bgr=True)(picture())[0], expected[0]) > 0.01


def test_images_in_the_wrong_range_are_reported_once():
    backbone = build()
    with pytest.warns(
        UserWarning, match="where 0 to 255 is expected.*Set the backbone's image_mean"
    ):
        backbone(raw())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        backbone(raw())
        build()(picture())


@pytest.mark.parametrize('network', ['test_convnext', 'ModifiedResNet'])
@pytest.mark.parametrize('dtype, tolerance', [('fp16', 0.01), ('bf16', 0.06)])
def test_low_precision_is_close(folders, network, dtype, tolerance):
    path, _ = folders(network)
    expected, low = ClipBackbone(name=path), ClipBackbone(name=path, dtype=dtype)
    assert {p.dtype for p in low.tower.parameters()} == {
        dict(fp16=torch.float16, bf16=torch.bfloat16)[dtype]
    }
    assert low.holder.fingerprint == expected.holder.fingerprint
    wanted = expected(picture())
    with torch.autocast('cpu', dtype=torch.bfloat16):  # what is told goes before the runner's
        maps = low(picture())
        as_runner = expected(picture())
    for got, other, want in zip(maps, as_runner, wanted, strict=True):
        assert got.dtype == other.dtype == torch.float32
        assert relative(got, want) < tolerance
        assert 1e-4 < relative(other, want) < 0.06


# ---- frozen ---------------------------------------------------------------------------------------------------


def test_nothing_is_trained_or_saved():
    backbone = build(config=architecture('test_convnext', timm_drop_path=0.5)).train()
    assert not list(backbone.parameters()) and list(backbone.state_dict()) == [
        'holder.frozen_digest'
    ]
    assert not any(p.requires_grad for p in backbone.tower.parameters())
    assert not any(module.training for module in backbone.tower.modules())
    backbone.tower.train()
    assert not any(module.training for module in backbone.tower.modules())
    image = picture().requires_grad_(True)
    maps = backbone(image)
    assert not any(x.requires_grad for x in maps)
    assert all(torch.equal(a, b) for a, b in zip(maps, backbone(image)))  # no path is dropped


def test_running_statistics_stay():
    backbone = build(config=architecture('ModifiedResNet')).train()
    before = copy.deepcopy(backbone.tower.state_dict())
    backbone(picture())
    assert any('running_mean' in key for key in before)
    assert all(
        torch.equal(value, before[key]) for key, value in backbone.tower.state_dict().items()
    )


def test_to_reaches_the_frozen_weights():
    backbone = build().to(torch.float64)
    assert {p.dtype for p in backbone.tower.parameters()} == {torch.float64}
    maps = backbone(picture().double())
    assert maps[0].dtype == torch.float64
    assert relative(maps[3], build()(picture())[3].double()) < 1e-5
    assert {p.device.type for p in build().to('meta').tower.parameters()} == {'meta'}


def test_an_ema_shares_the_frozen_weights():
    backbone = build(adapter=PYRAMID)
    clone = ExponentialMovingAverage(backbone, momentum=0.5).module
    ours, theirs = (next(b.tower.parameters()) for b in (backbone, clone))
    assert ours is theirs
    assert next(backbone.adapter.parameters()) is not next(clone.adapter.parameters())


# ---- where weights come from ----------------------------------------------------------------------------------


def test_random_weights_of_a_seed():
    rng = torch.get_rng_state()
    first, again, other = build(random_seed=3), build(random_seed=3), build(random_seed=4)
    assert torch.equal(rng, torch.get_rng_state())
    a, b, c = (backbone(picture()) for backbone in (first, again, other))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert all(relative(x, y) > 0.1 for x, y in zip(a, c))
    assert build().holder.fingerprint == build(random_seed=0).holder.fingerprint
    assert len({x.holder.fingerprint for x in (first, again, other)}) == 2
    wider = build(config=architecture('test_convnext2'), random_seed=3)
    assert wider.holder.fingerprint != first.holder.fingerprint


def test_a_folders_architecture_untrained(folders):
    path, _ = folders()
    backbone = ClipBackbone(name=path, random_seed=3)
    want = build(random_seed=3)
    key = 'stem.0.weight'
    assert torch.equal(backbone.tower.trunk.state_dict()[key], want.tower.trunk.state_dict()[key])


def test_an_architecture_with_a_weight_file(folders, tmp_path, monkeypatch):
    path, _ = folders()
    (tmp_path / 'tiny-conv.json').write_text(json.dumps(architecture()))
    open_clip.add_model_config(tmp_path / 'tiny-conv.json')
    by_file = ClipBackbone(name='tiny-conv', pretrained=str(path / 'open_clip_model.safetensors'))
    for got, want in zip(by_file.tower.parameters(), ClipBackbone(name=path).tower.parameters()):
        assert torch.equal(got, want)

    def offline(*_, **__):
        raise RuntimeError('no network here')

    monkeypatch.setattr(open_clip, 'create_model_and_transforms', offline)
    with pytest.raises(
        FileNotFoundError,
        match="'convnext_large_d_320' .*laion2b.*no network here.*pretrained=FILE",
    ):
        ClipBackbone()


@pytest.mark.parametrize(
    'name, channels',
    [
        ('convnext_large_d_320', [192, 384, 768, 1536]),
        ('RN50', [256, 512, 1024, 2048]),
    ],
)
def test_full_size_architectures(name, channels):
    """On the meta device: no memory is taken, shapes are real."""
    with torch.device('meta'):
        backbone = ClipBackbone(name=name, random_seed=0)
        maps = backbone(torch.empty(1, 3, 96, 160))
    assert backbone.out_channels == [x.shape[1] for x in maps] == channels
    assert [(96 // s, 160 // s) for s in backbone.out_strides] == [
        tuple(x.shape[-2:]) for x in maps
    ]
    assert backbone.out_strides == list(STRIDES)


def test_the_config_builds():
    config = Config.fromfile(ROOT / 'configs/_base_/models/clip-convnext-l-backbone.py')
    with torch.device('meta'):
        backbone = MODELS.build(dict(config.backbone, random_seed=0))
    assert backbone.out_channels == config.backbone_channels
    tags = open_clip.list_pretrained_tags_by_model(config.backbone.name)
    assert config.backbone.pretrained in tags


# ---- checkpoints ----------------------------------------------------------------------------------------------


def test_other_frozen_weights_are_refused(folders):
    (first, _), (second, _) = folders(seed=0), folders(seed=1)
    state = ClipBackbone(name=first, adapter=PYRAMID).state_dict()
    with pytest.raises(
        ValueError, match=r'trained on other frozen CLIP weights .*sha256:.*`pretrained`'
    ):
        ClipBackbone(name=second, adapter=PYRAMID).load_state_dict(state)
    with pytest.raises(ValueError, match=r'other frozen CLIP weights .*random:0'):
        build(adapter=PYRAMID).load_state_dict(state)


def test_the_same_weights_elsewhere_are_accepted(folders, tmp_path):
    path, _ = folders()
    shutil.copytree(path, tmp_path / 'renamed')
    first = ClipBackbone(name=path, adapter=PYRAMID)
    second = ClipBackbone(name=tmp_path / 'renamed', adapter=PYRAMID)
    assert relative(second(picture())[0], first(picture())[0]) > 0.1
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first(picture()), second(picture())))


class Segmentor(BaseModule):
    """As mmseg's and mmdet's models are: a backbone by config, a head."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, image):
        size = image.shape[-2:]
        return self.head(sum(nn.functional.interpolate(x, size) for x in self.backbone(image)))


def test_a_model_trains_saves_and_loads(tmp_path):
    config = dict(type='mmdiffrep.ClipBackbone', config=architecture(), adapter=PYRAMID)
    model = Segmentor(config)
    model.init_weights()
    before = copy.deepcopy(model.backbone.tower.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(picture()).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())  # DDP finds no unused parameter
    optimizer.step()
    assert all(p.grad is None for p in model.backbone.tower.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.tower.state_dict().items())
    torch.save(model.state_dict(), tmp_path / 'x.pth')
    torch.manual_seed(5)
    again = Segmentor(config)
    image = picture(1, 3, 45, 70)
    assert not torch.equal(again.eval()(image), model.eval()(image))
    again.load_state_dict(torch.load(tmp_path / 'x.pth', weights_only=True))
    assert torch.equal(again(image), model(image))


def test_in_an_mmseg_model():
    registry = pytest.importorskip('mmseg.registry').MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    from mmengine.structures import PixelData

    head = dict(
        type='FPNHead', in_channels=CHANNELS['test_convnext'], in_index=[0, 1, 2, 3], feature_strides=list(STRIDES), channels=8,
        num_classes=3, norm_cfg=dict(type='GN', num_groups=2), align_corners=False,
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = registry.build(
            dict(
                type='EncoderDecoder', decode_head=head, test_cfg=dict(mode='whole'),
                backbone=dict(type='mmdiffrep.ClipBackbone', config=architecture()),
            )
        )  # fmt: skip
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 48, 64, dtype=torch.long)))
        sum(model.loss(picture(1, 3, 48, 64), [sample]).values()).backward()
    assert {name.split('.')[0] for name, _ in model.named_parameters()} == {'decode_head'}
    assert all(p.grad is not None for p in model.decode_head.parameters())


# ---- what users get wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(config=architecture('ViT')), "tower is a VisionTransformer.*Take a convolutional one: 'convnext_large_d_320'"),
        (dict(config=architecture('test_vit')), 'tower is a VisionTransformer.*no four maps at strides 4, 8, 16, 32'),
        (dict(out_indices=()), r'stages \[\] were asked for; allowed: at least one of 0, 1, 2, 3'),
        (dict(out_indices=(0, 4)), r'stages \[0, 4\] were asked for'),
        (dict(out_indices=(2, 1)), 'rising'),
        (dict(dtype='half'), r"dtype='half' is unknown; allowed: \['fp32', 'fp16', 'bf16'\]"),
        (dict(image_mean=(127.5,)), r'image_mean=\[127.5\].*give one number for each'),
        (dict(pretrained='openai'), "config has no trained weights: leave pretrained='openai' out"),
        (dict(config=dict(embed_dim=4)), r"clip config lacks \['vision_cfg'\]"),
        (dict(config=None, name='convnext_huge', random_seed=0), "'convnext_huge' is unknown.*Nearest: .*convnext_"),
        (dict(config=None, name='convnext_hueg'), "'convnext_hueg' is unknown to open_clip. Nearest"),
        (dict(config=None, name='RN50'), "pretrained='laion2b.* is neither a file nor a tag of 'RN50'; its tags.*openai"),
        (dict(config=None, pretrained=None), "'convnext_large_d_320' needs weights: give pretrained=FILE or one of its tags"),
        (dict(adapter=dict(PYRAMID, widht=3)), "adapter 'mmdiffrep.StridePyramid' does not fit.*widht"),
    ],
)  # fmt: skip
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_shipped_vit_is_refused():
    with pytest.raises(ValueError, match='tower is a VisionTransformer'):
        ClipBackbone(name='mmdiffrep/toy-clip')


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'):
        ClipBackbone(name=tmp_path / 'nothing')
    with pytest.raises(FileNotFoundError, match='weights.pt.* is neither a file nor a tag'):
        ClipBackbone(pretrained='weights.pt')
    with pytest.raises(
        FileNotFoundError, match="open_clip_config.json is not there.*open_clip's format"
    ):
        load_conv_tower(tmp_path, random_seed=0)


def test_images_of_other_shapes():
    with pytest.raises(
        ValueError, match=r'\(1, 4, 64, 64\) were given; allowed: \(B, 3, H, W\).*alpha channel'
    ):
        build()(torch.zeros(1, 4, 64, 64))


def test_open_clip_is_loaded_when_a_clip_is(monkeypatch):
    """Imported afresh where neither open_clip nor timm can be; building one says what to install."""
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith('mmdiffrep.openvocab')]:
            patch.delitem(sys.modules, name)
        for name in ('open_clip', 'timm'):
            patch.setitem(sys.modules, name, None)
        patch.setattr(mmdiffrep, 'openvocab', mmdiffrep.openvocab)  # put back afterwards
        fresh = importlib.import_module('mmdiffrep.openvocab.conv_tower')
        assert fresh.ConvTower is not ConvTower
        with pytest.raises(ImportError, match=r'pip install .mmdiffrep\[openvocab\]'):
            fresh.load_conv_tower('RN50', 'openai')
    assert sys.modules['mmdiffrep.openvocab.conv_tower'].ConvTower is ConvTower

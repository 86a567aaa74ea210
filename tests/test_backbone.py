"""DiffusionBackbone: what it returns, trains, saves and says."""

import copy
import gc
import warnings

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.models.backbones import DiffusionBackbone
from mmdiffrep.registry import MODELS

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TAPS = ['mid_block', 'up_blocks.0', 'up_blocks.1']
PYRAMID = dict(type='mmdiffrep.StridePyramid', out_channels=8, width=8, groups=2, strides=(2, 4))


def picture(*shape, seed=0):
    """8-bit images, normalised as stock configs do."""
    image = torch.randint(0, 256, shape or (2, 3, 16, 24), generator=torch.Generator().manual_seed(seed)).float()
    return (image - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


@pytest.fixture(scope='module', autouse=True)
def traces_once():
    """Networks of one structure have one trace; test_denoiser.py tests the tracing itself."""
    known, original = {}, Denoiser.trace

    def trace(self, size):
        key = (str(self.network), size)
        if key not in known:
            known[key] = original(self, size)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, 'trace', trace)
        yield


@pytest.fixture
def build(tiny_config):
    def make(taps=TAPS, random_seed=0, denoiser=None, **options):
        net = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=random_seed, **(denoiser or {}))
        return MODELS.build(dict(type='mmdiffrep.DiffusionBackbone', denoiser=net, taps=taps, **options))

    return make


# ---- maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(16, 16), (16, 40), (36, 8), (17, 23), (5, 30)])
def test_declared_channels_and_strides_are_real(build, size):
    for options in ({}, dict(adapter=PYRAMID), dict(adapter=dict(type='mmdiffrep.ConcatUpsample'))):
        backbone = build(taps=['conv_in', *TAPS], **options)
        maps = backbone(picture(1, 3, *size))
        assert [m.shape[1] for m in maps] == backbone.out_channels
        assert [tuple(m.shape[-2:]) for m in maps] == [
            tuple(-(-n // s) for n in size) for s in backbone.out_strides
        ]


def test_maps_are_the_denoisers_own(build):
    """The whole way, step by step: undo, noise by shared draw, look, nothing to crop."""
    from mmdiffrep.diffusion.noise import seeded_noise

    backbone = build(timesteps=100, noise=dict(kind='shared', seed=4))
    image = picture()
    x0 = (image * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)) / 127.5 - 1
    product = backbone.denoiser.schedule.alphas_cumprod[100]
    x_t = product.sqrt() * x0 + (1 - product).sqrt() * seeded_noise(4, 0, 0, (3, 16, 24))
    expected = backbone.denoiser.features(x_t, torch.full((2,), 100), taps=TAPS)
    for got, name in zip(backbone(image), TAPS):
        torch.testing.assert_close(got, expected[name], rtol=1e-5, atol=1e-5)


def test_batch_of_one_and_three_agree(build):
    for kind in ('shared', 'per_image', 'none'):
        backbone = build(noise=dict(kind=kind))
        image = picture(3, 3, 15, 18)
        together = backbone(image)
        for i in range(3):
            for a, b in zip(backbone(image[i : i + 1]), together):
                torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-5)


def test_range_and_channel_order_do_not_matter_once_they_are_told(build):
    image = picture()
    raw = image * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)
    expected = build()(image)
    told = [
        (raw, dict(image_mean=(0, 0, 0), image_std=(1, 1, 1))),
        (raw / 255, dict(image_mean=(0, 0, 0), image_std=(255, 255, 255))),
        (raw / 127.5 - 1, dict(image_mean=[127.5] * 3, image_std=[127.5] * 3)),
        (image.flip(1), dict(image_mean=MEAN[::-1], image_std=STD[::-1], bgr=True)),
    ]
    for given, options in told:
        for got, want in zip(build(**options)(given), expected):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_several_timesteps_come_t_major(build):
    both = build(timesteps=[10, 500])
    maps = both(picture())
    apart = [*build(timesteps=10)(picture()), *build(timesteps=500)(picture())]
    assert len(maps) == 6 and both.out_channels == [16, 16, 16] * 2
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(maps, apart))


def test_draws_are_averaged(build):
    backbone = build(noise=dict(kind='shared', draws=3))
    image = picture()
    x0 = backbone.to_rgb(image)
    t = torch.full((2,), 50)
    singles = [
        backbone.denoiser.features(
            backbone.denoiser.schedule.add_noise(x0, backbone.noise.draw(tuple(x0.shape), k), t), t, taps=TAPS
        )
        for k in range(3)
    ]
    for got, name in zip(backbone(image), TAPS):
        torch.testing.assert_close(got, sum(s[name] for s in singles) / 3)
    assert not torch.equal(singles[0]['mid_block'], singles[1]['mid_block'])


@pytest.mark.parametrize('looks, expected', [(1, [2] * 5), (4, [4, 4, 2]), (64, [10])])
def test_draws_go_through_the_network_together(build, looks, expected):
    """Two images and five draws: as many noised images at once as allowed, the same maps."""
    backbone = build(noise=dict(kind='per_image', draws=5), looks=looks)
    seen = []
    backbone.denoiser.network.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    one_by_one = build(noise=dict(kind='per_image', draws=5), looks=1)
    for got, want in zip(backbone(picture()), one_by_one(picture())):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert seen == expected
    with pytest.raises(ValueError, match='looks=0'):
        build(looks=0)


@pytest.mark.parametrize('dtype, tolerance', [('fp16', 0.01), ('bf16', 0.06)])
def test_low_precision_is_close(build, dtype, tolerance):
    expected, low = build()(picture()), build(dtype=dtype)
    assert next(low.denoiser.parameters()).dtype in (torch.float16, torch.bfloat16)
    for got, want in zip(low(picture()), expected):
        assert got.dtype == torch.float32
        assert (got - want).norm() / want.norm() < tolerance  # relative error of a whole map
    trained = build(dtype='bf16', trainable=True)
    assert all(p.dtype == torch.float32 for p in trained.parameters())
    assert (trained(picture())[0] - expected[0]).norm() / expected[0].norm() < 0.06


def test_channels_last_changes_only_the_layout(build):
    other = build(channels_last=True)
    assert other.denoiser.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for got, want in zip(other(picture()), build()(picture())):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# ---- what is trained, saved and copied ------------------------------------------------------------------------


def test_frozen_weights_are_nowhere(build):
    backbone = build(adapter=PYRAMID)
    names = [n for n, _ in backbone.named_parameters()]
    assert names and all(n.startswith('adapter.') for n in names)
    assert all(k.startswith('adapter.') or k == 'holder.frozen_digest' for k in backbone.state_dict())
    wrapper = build_optim_wrapper(backbone, dict(optimizer=dict(type='SGD', lr=0.1)))
    held = {id(p) for g in wrapper.optimizer.param_groups for p in g['params']}
    assert held == {id(p) for p in backbone.parameters()}
    ema = ExponentialMovingAverage(backbone)
    assert not any('unet' in n for n, _ in ema.named_parameters())
    theirs = ema.module.denoiser.unet.conv_in.weight
    assert theirs is backbone.denoiser.unet.conv_in.weight  # shared, not copied
    ema.update_parameters(backbone)
    assert all(torch.equal(a, b) for a, b in zip(ema.module(picture()), backbone(picture())))


def test_ema_of_a_trained_part_is_its_own(build):
    backbone = build(trainable=['up_blocks.1'])
    ema = ExponentialMovingAverage(backbone, momentum=0.5)
    ema.update_parameters(backbone)  # the first copies
    before = [m.clone() for m in ema.module(picture())]
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(ema.module(picture()), before))
    ema.update_parameters(backbone)
    network = ema.module.denoiser.unet
    assert torch.allclose(
        network.up_blocks[1].resnets[0].conv1.bias, backbone.denoiser.unet.up_blocks[1].resnets[0].conv1.bias - 0.5
    )
    assert network.conv_in.weight is backbone.denoiser.unet.conv_in.weight
    assert torch.equal(ema.module(picture())[0], before[0])  # mid_block is frozen, in front of the trained part
    assert not torch.equal(ema.module(picture())[2], before[2])


@pytest.mark.parametrize('trainable', [False, True, ['up_blocks.1'], ['mid_block.attentions', 'up_blocks']])
def test_complete_again_after_load(build, tmp_path, trainable):
    first = build(adapter=PYRAMID, trainable=trainable)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.01)
    torch.save(first.state_dict(), tmp_path / 'x.pth')
    torch.manual_seed(5)
    second = build(adapter=PYRAMID, trainable=trainable)
    second.load_state_dict(torch.load(tmp_path / 'x.pth', weights_only=True))
    first.eval(), second.eval()
    assert all(torch.equal(a, b) for a, b in zip(first(picture()), second(picture())))


def test_other_frozen_weights_are_refused(build):
    state = build(adapter=PYRAMID, random_seed=0).state_dict()
    with pytest.raises(ValueError, match=r'trained on other frozen diffusion weights .*random:1:.*`pretrained`'):
        build(adapter=PYRAMID, random_seed=1).load_state_dict(state)


def test_weights_without_a_source_are_saved(build, tiny_denoiser):
    def make(seed):
        denoiser = tiny_denoiser(random_seed=seed)
        denoiser.fingerprint = None
        return DiffusionBackbone(denoiser, TAPS)

    first, second = make(0), make(1)
    assert 'holder.network.conv_in.weight' in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first(picture()), second(picture())))


@pytest.mark.parametrize(
    'trainable, taps',
    [
        (True, TAPS), (True, ['conv_in']), (True, ['up_blocks.1.resnets.1.conv_shortcut']), ('up_blocks.1', TAPS),
        (['down_blocks.1.attentions.0', 'up_blocks.0.resnets.1'], TAPS), (['up_blocks'], ['up_blocks.0.resnets.1']),
    ],
)  # fmt: skip
def test_gradients_go_to_the_trained_parts_and_all_of_them(build, trainable, taps):
    backbone = build(taps=taps, trainable=trainable)
    unet = backbone.denoiser.unet
    prefix = 'holder.network.' if trainable is True else 'holder.'
    parts = ['' if trainable is True else trainable] if not isinstance(trainable, list) else trainable
    own = {n for n, _ in unet.named_parameters() if any(n.startswith(part) for part in parts)}
    assert {n.removeprefix(prefix) for n, _ in backbone.named_parameters()} == own  # the network's own names
    sum(m.square().sum() for m in backbone(picture())).backward()
    for name, p in unet.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name  # so DDP finds no unused parameter
        assert name in own or not p.requires_grad, name
    assert any(p.requires_grad for p in unet.parameters())


def test_checkpointing_gives_the_same_gradients(build):
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = build(trainable=True, with_cp=with_cp, adapter=PYRAMID).train()
        sum(m.square().sum() for m in backbone(picture())).backward()
        grads.append({n: p.grad for n, p in backbone.named_parameters()})
    for name, grad in grads[0].items():
        assert (grad is None) == (grads[1][name] is None) and (grad is None or torch.equal(grad, grads[1][name])), name


def test_train_leaves_the_frozen_part_in_eval(build):
    backbone = build(trainable=['up_blocks.1'], adapter=PYRAMID, denoiser=dict()).train()
    unet = backbone.denoiser.unet
    assert unet.up_blocks[1].training and unet.up_blocks[1].resnets[0].training and backbone.adapter.training
    assert not any(m.training for m in unet.mid_block.modules()) and not unet.conv_in.training
    backbone.eval()
    assert not any(m.training for m in unet.modules()) and not backbone.adapter.training
    whole = build(trainable=True).train()
    assert all(m.training for m in whole.denoiser.unet.modules())


def test_to_reaches_frozen_weights(build):
    for trainable in (False, ['up_blocks.1'], True):
        backbone = build(trainable=trainable).to(torch.float64)
        assert {p.dtype for p in backbone.denoiser.parameters()} == {torch.float64}
        assert len({id(p) for p in backbone.denoiser.parameters()} & {id(p) for p in backbone.parameters()}) == len(
            list(backbone.parameters())
        )
        maps = backbone(picture().double())
        assert maps[0].dtype == torch.float64
    assert {p.device.type for p in build().to('meta').denoiser.parameters()} == {'meta'}


def test_grad_through(build):
    for flag in (False, True):
        backbone = build(grad_through=flag)
        image = picture().requires_grad_(True)
        maps = backbone(image)
        assert all(m.requires_grad == flag for m in maps)
        if flag:
            sum(m.square().sum() for m in maps).backward()
            assert image.grad.abs().sum() > 0
            assert all(p.grad is None for p in backbone.denoiser.parameters())


def test_deepcopy_works_alone(build):
    backbone = build(trainable=True, with_cp=True)
    clone = copy.deepcopy(backbone)
    assert all(torch.equal(a, b) for a, b in zip(backbone(picture()), clone(picture())))
    assert clone.denoiser is not backbone.denoiser
    sum(m.sum() for m in clone(picture())).backward()
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet', 'mmengine'])
def test_builds_in_every_default_scope(tiny_config, scope):
    if scope == 'mmengine':
        from mmengine.registry import MODELS as registry
    else:
        registry = pytest.importorskip(f'{scope}.registry').MODELS
    config = dict(
        type='mmdiffrep.DiffusionBackbone', taps=TAPS, adapter=PYRAMID,
        denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config),
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope(scope):
        assert isinstance(registry.build(config), DiffusionBackbone)


# ---- what users get wrong -------------------------------------------------------------------------------------


def test_wrong_arguments(build):
    for options, message in [
        (dict(taps='mid_block'), 'taps must be a list'),
        (dict(taps=[]), 'taps must be a list of at least one'),
        (dict(taps=['mid_block', 'mid_block:out']), 'name the same place twice'),
        (dict(taps=['mid_blok']), "tap 'mid_blok'.*Nearest"),
        (dict(dtype='half'), r"dtype='half' is unknown; allowed: \['fp32', 'fp16', 'bf16'\]"),
        (dict(timesteps=1000), 'timesteps .* outside the schedule; allowed: whole numbers from 0 to 999'),
        (dict(timesteps=[]), 'timesteps is empty'),
        (dict(noise=dict(kind='shred')), "'shred' is unknown; allowed"),
        (dict(trainable=['up_blocks.2']), 'no such module'),
        (dict(image_mean=(127.5,)), r'image_mean=\[127.5\].*takes images of 3 channels: give one number for each'),
        (dict(adapter=dict(type='mmengine.ImgDataPreprocessor')), 'does not fit'),
        (dict(adapter=dict(PYRAMID, widht=3)), "adapter 'mmdiffrep.StridePyramid' does not fit.*widht"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(**options)


def test_an_adapters_own_channels_are_not_used(build):
    with pytest.warns(UserWarning, match=r"adapter: \['in_channels'\] are filled in from the taps"):
        assert build(adapter=dict(PYRAMID, in_channels=[1])).out_channels == [8, 8]


def test_an_adapter_that_is_none(build):
    @MODELS.register_module(name='NoAdapterAtAll', force=True)
    class NoAdapterAtAll(torch.nn.Module):
        def __init__(self, in_channels, in_strides):
            super().__init__()

    with pytest.raises(ValueError, match="'mmdiffrep.NoAdapterAtAll' says no out_channels.*StridePyramid"):
        build(adapter=dict(type='mmdiffrep.NoAdapterAtAll'))
    MODELS.module_dict.pop('NoAdapterAtAll')


def test_images_of_other_shapes(build):
    backbone = build()
    with pytest.raises(ValueError, match=r'\(1, 4, 8, 8\) were given; allowed: \(B, 3, H, W\).*alpha channel'):
        backbone(torch.zeros(1, 4, 8, 8))
    for shape in [(3, 8, 8), (1, 1, 8, 8), (0, 3, 8, 8)]:
        with pytest.raises(ValueError, match='images of 3 channels'):
            backbone(torch.zeros(shape))


def raw(low, high):
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * (high - low) + low


@pytest.mark.parametrize(
    'image, options',
    [
        (raw(0, 1), {}), (raw(-1, 1), {}), (raw(0, 255), {}),  # with ImageNet's mean and std undone
        (raw(0, 1), dict(image_mean=[0] * 3, image_std=[1] * 3)),
        (picture(2, 3, 32, 32), dict(image_mean=[0] * 3, image_std=[1] * 3)),
        (raw(0, 1), dict(image_mean=[127.5] * 3, image_std=[127.5] * 3)),
        (raw(-1, 1), dict(image_mean=[0] * 3, image_std=[255] * 3)),
        (raw(0, 255), dict(image_mean=[127.5] * 3, image_std=[127.5] * 3)),
    ],
)  # fmt: skip
def test_images_in_the_wrong_range_are_reported_once(build, image, options):
    backbone = build(**options)
    with pytest.warns(UserWarning, match=r"images, with its image_mean=.* where 0 to 255 is expected.*Set the backbone's"):
        backbone(image)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        backbone(image)


def test_plausible_images_are_not_reported(build):
    dark = torch.randint(0, 60, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0)).float()
    zero = dict(image_mean=[0] * 3, image_std=[1] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build()(picture(2, 3, 40, 40))
        build(**zero)(dark)
        build(**zero)(raw(0, 255))
        build()(torch.zeros(1, 3, 40, 40))  # a dummy


def test_nan_is_reported(build):
    with pytest.warns(UserWarning, match='hold NaN'):
        build()(torch.full((1, 3, 8, 8), float('nan')))


def lr_messages(backbone, factor):
    head = torch.nn.Conv2d(8, 2, 1)
    optimizer = torch.optim.SGD(
        [dict(params=backbone.parameters(), lr=0.1 * factor), dict(params=head.parameters(), lr=0.1)], lr=0.1
    )
    backbone.train()
    found = []
    for _ in range(2):
        head(backbone(picture())[0]).sum().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            optimizer.step()
        found += [str(w.message) for w in caught if 'adapter' in str(w.message)]
    return found


def test_a_tenth_of_the_learning_rate_on_the_adapter(build):
    (message,) = lr_messages(build(adapter=PYRAMID), 0.1)  # once
    assert "learns at 0.01, 0.1 times the rate of the head (0.1)" in message
    assert "custom_keys['backbone.adapter'] = dict(lr_mult=1.0)" in message
    assert not lr_messages(build(adapter=PYRAMID), 1)


def test_two_watches_of_one_optimizer_do_not_disturb_each_other():
    from mmdiffrep.models.backbones.checks import watch_learning_rate

    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    watch_learning_rate([a])
    watch_learning_rate([b])
    optimizer = torch.optim.SGD([a, b], lr=0.1)
    a.grad, b.grad = torch.ones(1), torch.ones(1)
    for _ in range(2):
        optimizer.step()
    assert a.item() == b.item() == pytest.approx(-0.2)


def test_a_watch_ends_with_its_model():
    from mmdiffrep.models.backbones import checks

    parameter = torch.nn.Parameter(torch.zeros(1))
    checks.watch_learning_rate([parameter])
    del parameter
    gc.collect()
    # new parameters may get the id of the one that is gone
    slow, fast = ([torch.nn.Parameter(torch.zeros(1)) for _ in range(200)] for _ in range(2))
    optimizer = torch.optim.SGD([dict(params=slow, lr=0.01), dict(params=fast, lr=0.1)])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        optimizer.step()
    assert checks._finished

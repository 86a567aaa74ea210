"""Switches for speed and memory: each gives what the plain way gives, up to its precision."""

import copy
import importlib.util
import warnings

import pytest
import torch
from torch import nn

import mmdiffrep  # noqa: F401
from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.diffusion.speed import Remembered
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.registry import MODELS

IMAGE = dict(image_mean=[127.5] * 3, image_std=[127.5] * 3)
SMALLEST = dict(
    sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=4,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip


def unet(config, **kwargs):
    denoiser = dict(type='mmdiffrep.PixelUNet', config=config, random_seed=0)
    return MODELS.build(
        dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['mid_block', 'up_blocks.1'], timesteps=50, **IMAGE, **kwargs)
    )


def latent(small_sd_config, taps=('down_blocks.1.attentions.0.transformer_blocks.0', 'up_blocks.1'), **kwargs):
    denoiser = dict(type='mmdiffrep.StableDiffusion', config=small_sd_config, random_seed=0)
    return MODELS.build(dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=list(taps), timesteps=50, **IMAGE, **kwargs))


def images(count=2, height=32, width=32, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_near(first, second, share=1e-5):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.shape == b.shape and (a - b).abs().max() <= share * b.abs().max()


# ---- a text's keys and values ---------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Rows that linear layers of cross-attentions were computed on."""
    seen, forward = [], nn.Linear.forward

    def counted(self, x):
        if isinstance(self.__dict__.get('forward'), Remembered):
            seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, 'forward', counted)
    return seen


def plain_of(model):
    """The same network with untouched layers."""
    other = copy.deepcopy(model)
    count = 0
    for module in other.modules():
        count += isinstance(module, nn.Linear) and module.__dict__.pop('forward', None) is not None
    assert count
    return other


def test_a_fixed_text_is_projected_once(small_sd_config, calls):
    net = StableDiffusion(config=small_sd_config, random_seed=0)
    plain = plain_of(net)
    layers = sum(isinstance(m.__dict__.get('forward'), Remembered) for m in net.modules())
    x, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 10, 500])
    with torch.no_grad():
        for again in range(3):
            got = net.features(x + again, t, None, ['up_blocks.1'])
            want = plain.features(x + again, t, None, ['up_blocks.1'])
            assert_near(got.values(), want.values(), 1e-6)
        assert set(calls) == {1} and len(calls) == layers  # each once in three looks
        count = len(calls)
        # other words, also where they lie in the same tensor, are projected anew
        tokens = net.tokens.clone()
        got = net.features(x, t, Condition(tokens=tokens), ['up_blocks.1'])
        tokens.add_(1)
        moved = net.features(x, t, Condition(tokens=tokens), ['up_blocks.1'])
        want = plain.features(x, t, Condition(tokens=net.tokens + 1), ['up_blocks.1'])
        assert_near(moved.values(), want.values(), 1e-6)
        assert (moved['up_blocks.1'] - got['up_blocks.1']).abs().max() > 1e-3 and len(calls) == 3 * count
        many = torch.randn(3, 5, net.tokens.shape[2])
        got = net.features(x, t, Condition(tokens=many), ['up_blocks.1'])
        want = plain.features(x, t, Condition(tokens=many), ['up_blocks.1'])
        assert_near(got.values(), want.values(), 1e-6)


def test_changed_weights_and_gradients_are_not_overlooked(small_sd_config):
    net = StableDiffusion(config=small_sd_config, random_seed=0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 10])
    with torch.no_grad():
        before = net.features(x, t, None, ['up_blocks.1'])['up_blocks.1']
        for module in net.modules():
            if isinstance(module.__dict__.get('forward'), Remembered):
                module.weight.add_(0.1)
        after = net.features(x, t, None, ['up_blocks.1'])['up_blocks.1']
        want = plain_of(net).features(x, t, None, ['up_blocks.1'])['up_blocks.1']
    assert (before - after).abs().max() > 1e-4
    assert_near([after], [want], 1e-6)
    tokens = net.tokens.clone().requires_grad_(True)
    for _ in range(2):
        net.features(x, t, Condition(tokens=tokens), ['up_blocks.1'])['up_blocks.1'].sum().backward()
    assert tokens.grad.abs().sum() > 0
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        low = net.features(x, t, None, ['up_blocks.1'])['up_blocks.1']
    with torch.no_grad():
        high = net.features(x, t, None, ['up_blocks.1'])['up_blocks.1']
    assert_near([high], [after], 1e-6)
    assert not torch.equal(low.float(), high)
    with torch.inference_mode():
        assert_near([net.features(x, t, None, ['up_blocks.1'])['up_blocks.1']], [after], 1e-6)


def test_a_text_in_half_precision_is_cast_and_projected_once(small_sd_config, calls):
    model = latent(small_sd_config, dtype='bf16')
    first = model(images())
    count = len(calls)
    assert_near(model(images()), first, 0)
    assert count and len(calls) == count


# ---- fused, quantised, compiled --------------------------------------------------------------------------------


def test_fused_projections(small_sd_config, tiny_config):
    for build, config in ((latent, small_sd_config), (unet, tiny_config)):
        plain, fused = build(config), build(config, fuse_qkv=True)
        assert_near(fused(images()), plain(images()), 1e-5)
        network = fused.denoiser.network
        names = [name for name, _ in network.named_modules()]
        assert any(name.endswith('to_qkv') for name in names)
        count = [sum(p.numel() for p in model.denoiser.parameters()) for model in (plain, fused)]
        assert count[0] == count[1]
    with pytest.raises(ValueError, match='frozen networks'):
        unet(tiny_config, fuse_qkv=True, trainable=True)
    with pytest.raises(ValueError, match='Leave fuse_qkv out'):
        latent(small_sd_config, ['down_blocks.1.attentions.0.transformer_blocks.0.attn1:probs'], fuse_qkv=True)


@pytest.mark.skipif(importlib.util.find_spec('torchao') is None, reason='torchao is not installed')
def test_quantised_weights(small_sd_config, tmp_path):
    plain, small = latent(small_sd_config), latent(small_sd_config, quantise='int8')
    got, want = small(images()), plain(images())
    assert_near(got, want, 0.05)
    assert not torch.equal(got[-1], want[-1])
    kept = MODELS.build(
        dict(type='mmdiffrep.CachedBackbone', dtype='fp32', backbone=dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.StableDiffusion', config=small_sd_config, random_seed=0),
            taps=['up_blocks.1'], quantise='int8', **IMAGE)))  # fmt: skip
    assert_near(kept(images()), small(images())[1:], 1e-5)


def test_unknown_or_missing_quantisation(small_sd_config, monkeypatch):
    with pytest.raises(ValueError, match="quantise='int4' is unknown"):
        latent(small_sd_config, quantise='int4')
    monkeypatch.setitem(__import__('sys').modules, 'torchao', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmdiffrep\[quant\]'"):
        latent(small_sd_config, quantise='int8')


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


def test_a_compiled_look_is_the_plain_one_without_a_break():
    """``fullgraph=True`` raises at any graph break."""
    plain, fast = unet(SMALLEST), unet(SMALLEST, compile=dict(backend='eager', dynamic=False))
    assert fast.denoiser.network._compiled_call_impl is not None
    assert_near(fast(images(2, 16, 16)), plain(images(2, 16, 16)))
    assert_near(fast(images(1, 15, 21, seed=1)), plain(images(1, 15, 21, seed=1)))
    assert not fast.denoiser._compiled.session.captured
    # other taps are read without the compiled code, and it still works behind them
    x, t = torch.zeros(1, 3, 16, 16), torch.tensor([5])
    with torch.no_grad():
        assert_near(
            fast.denoiser.features(x, t, None, ['down_blocks.0']).values(), plain.denoiser.features(x, t, None, ['down_blocks.0']).values()
        )
        added = dict(mid_block=torch.ones(1, 1, 1, 1))
        assert_near(
            fast.denoiser.features(x, t, None, ['up_blocks.1'], added).values(), plain.denoiser.features(x, t, None, ['up_blocks.1'], added).values()
        )
    assert fast.denoiser.tap_info((32, 32)) == plain.denoiser.tap_info((32, 32))
    twin = copy.deepcopy(fast)
    assert_near(twin(images(2, 16, 16)), plain(images(2, 16, 16)))
    assert not fast.denoiser._compiled.session.captured and twin.denoiser._compiled is None
    assert_near(fast(images(2, 16, 16)), plain(images(2, 16, 16)))


def test_a_size_is_compiled_once(monkeypatch):
    fast = unet(SMALLEST, compile=dict(backend='eager', dynamic=False))
    fast(images(1, 16, 16))
    with torch._dynamo.config.patch(error_on_recompile=True):
        fast(images(1, 16, 16, seed=1))
        with torch.no_grad():
            fast.denoiser.features(torch.zeros(1, 3, 16, 16), torch.tensor([5]), None, ['down_blocks.0'])
        fast(images(1, 16, 16, seed=2))


def test_a_compiled_stable_diffusion_with_tokens(small_sd_config):
    plain, fast = latent(small_sd_config), latent(small_sd_config, compile=dict(backend='eager', dynamic=False))
    assert_near(fast(images()), plain(images()))


def test_compiled_code(monkeypatch):
    """torch's own compiler, on the smallest network."""
    config = dict(denoiser=dict(type='mmdiffrep.PixelUNet', config=SMALLEST, random_seed=0), taps=['down_blocks.0.resnets.0'], timesteps=50, **IMAGE)
    plain, fast = (MODELS.build(dict(type='mmdiffrep.DiffusionBackbone', **config, compile=compiled)) for compiled in (False, True))
    assert_near(fast(images(1, 16, 16)), plain(images(1, 16, 16)))


def test_what_cannot_be_compiled_is_said(tiny_config, small_sd_config, tiny_dit_config):
    for make, message in (
        (lambda: unet(tiny_config, compile='fast'), "mode='fast' is unknown"),
        (lambda: unet(tiny_config, compile=dict(speed=1)), 'does not fit'),
        (lambda: unet(tiny_config, compile=True, with_cp=True), 'leave one out'),
        (lambda: latent(small_sd_config, ['down_blocks.1.attentions.0.transformer_blocks.0.attn2:probs'], compile=True), 'computed beside'),
        (
            lambda: MODELS.build(
                dict(
                    type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.DiT', config=tiny_dit_config, random_seed=0),
                    taps=['transformer_blocks.1'], compile=True,
                )
            ),  # fmt: skip
            'compile is for U-Nets',
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# ---- one batch where memory allows -----------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['shared', 'per_image', 'none'])
def test_timesteps_and_draws_go_together(tiny_denoiser, kind):
    net = tiny_denoiser(keep_taps=['up_blocks.1'])
    rows, look = [], net.run
    net.run = lambda x, t, c: (rows.append(len(x)), look(x, t, c))[1]
    policy = NoisePolicy(kind, 0, 1 if kind == 'none' else 3)
    steps, taps = [10, 100, 500], ['mid_block', 'up_blocks.1']
    rgb = images(2)
    with torch.no_grad():
        alone = FeatureExtractor(net, taps, steps, policy, looks=1)(rgb)
        assert set(rows) == {2}
        total, count = sum(rows), len(rows)
        rows.clear()
        together = FeatureExtractor(net, taps, steps, policy, looks=8)(rgb)
    assert sum(rows) == total and len(rows) == -(-count // 4) and max(rows) <= 8
    assert_near(together, alone)


def test_memory_that_runs_out_halves_the_batch(tiny_denoiser):
    net = tiny_denoiser(keep_taps=['up_blocks.1'])
    rows, look = [], net.run

    def small(x, t, c):
        rows.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')
        return look(x, t, c)

    extractor = FeatureExtractor(net, ['mid_block', 'up_blocks.1'], [10, 100], NoisePolicy('shared', 0, 2), looks=8)
    rgb = images(3)
    with torch.no_grad():
        want = extractor(rgb)
        net.run = small
        with pytest.warns(UserWarning, match='at most 3 noised images at once from now on'):
            got = extractor(rgb)
        assert_near(got, want)
        rows.clear()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert_near(extractor(rgb), want)  # remembered
        assert max(rows) <= 3 and sum(rows) == 12
        net.run = lambda x, t, c: small(torch.cat([x] * 9), t, c)
        with pytest.raises(torch.OutOfMemoryError, match="one of the noised images .* does not fit .*dtype='bf16'"):
            extractor(rgb)
    net.run = small
    with pytest.raises(torch.OutOfMemoryError, match='smaller batch'):  # with gradients nothing is split behind the user's back
        FeatureExtractor(net, ['up_blocks.1'], 10)(images(4).requires_grad_(True))


@pytest.mark.parametrize('kind', ['shared', 'per_image'])
def test_memory_that_runs_out_in_the_autoencoder_splits_the_images(small_sd_config, kind):
    net = StableDiffusion(config=small_sd_config, random_seed=0)
    taps = ['vae.encoder.down_blocks.0.resnets.0', 'up_blocks.1']
    extractor = FeatureExtractor(net, taps, [10, 100], NoisePolicy(kind, 0, 1))
    rgb, seen, encode = images(5), [], net.encode_tapped

    def small(image, *args, **kwargs):
        seen.append(len(image))
        if len(image) > 2:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')
        return encode(image, *args, **kwargs)

    told = Condition(tokens=torch.randn(5, 3, net.tokens.shape[2]))
    with torch.no_grad():
        want = extractor(rgb, told)
        net.encode_tapped = small
        with pytest.warns(UserWarning, match='at most 2 images at once from now on'):
            assert_near(extractor(rgb, told), want)
        assert seen == [5, 2, 2, 1]
        assert_near(extractor(rgb, told), want)
    with pytest.raises(torch.OutOfMemoryError, match='with gradients: take a smaller batch'):
        extractor(rgb, told)

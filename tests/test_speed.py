"""Switches for speed and memory: each gives what the plain way gives, up to its precision."""

import copy
import importlib.util
import warnings

import pytest
import torch
from torch import nn

import mmdiffrep  # noqa: F401
from mmdiffrep.diffusion.budget import peak_bytes, rows_within
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
        count += module.__dict__.pop('forward', None) is not None
    assert count
    return other


def test_a_fixed_text_is_projected_once(small_sd_config, calls):
    net = StableDiffusion(config=small_sd_config, random_seed=0)
    plain = plain_of(net)
    layers = sum(isinstance(m.__dict__.get('forward'), Remembered) for m in net.modules() if isinstance(m, nn.Linear))
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
                for weight in module.parameters():
                    weight.add_(0.1)
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


def test_a_timestep_is_embedded_once(small_sd_config, monkeypatch):
    """An extractor's constant timesteps; others, and those told by hand, are embedded anew."""
    from diffusers.models.embeddings import TimestepEmbedding

    seen, forward = [], TimestepEmbedding.forward
    monkeypatch.setattr(TimestepEmbedding, 'forward', lambda self, x, *more: seen.append(x.dtype) or forward(self, x, *more))
    for dtype in ('fp32', 'bf16'):
        model, want = latent(small_sd_config, dtype=dtype), latent(small_sd_config, dtype=dtype)
        want.extractor.denoiser = plain_of(want.denoiser)
        seen.clear()
        for again in range(3):
            got = model(images(seed=again))
            assert len(seen) == 1 + again and seen[0] == next(model.denoiser.unet.parameters()).dtype
            assert_near(got, want(images(seed=again)), 1e-6)  # which embeds it once more
        model(images(3))  # another batch
        assert len(seen) == 5
    net, x = StableDiffusion(config=small_sd_config, random_seed=0), torch.randn(2, 4, 8, 8)
    plain = plain_of(net)
    with torch.no_grad():
        t = torch.tensor([10, 10])
        for step in (10, 500):
            t.fill_(step)  # in the same place
            assert_near(net.features(x, t, None, ['up_blocks.1']).values(), plain.features(x, t, None, ['up_blocks.1']).values(), 1e-6)
    told = Condition(tokens=net.tokens, time_bias=torch.ones(1, net.unet.time_embedding.linear_2.out_features))
    with torch.no_grad():
        assert_near(net.features(x, t, told, ['up_blocks.1']).values(), plain.features(x, t, told, ['up_blocks.1']).values(), 1e-6)
        assert_near(net.features(x, t, None, ['up_blocks.1']).values(), plain.features(x, t, None, ['up_blocks.1']).values(), 1e-6)


def test_what_was_remembered_in_inference_mode_serves_in_training(small_sd_config):
    model = latent(small_sd_config, grad_through=True)
    with torch.inference_mode():
        model(images())
    image = images().requires_grad_()
    sum(m.sum() for m in model(image)).backward()
    other = latent(small_sd_config, grad_through=True)
    again = images().requires_grad_()
    sum(m.sum() for m in other(again)).backward()
    assert image.grad.abs().max() > 0 and torch.equal(image.grad, again.grad)


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
@pytest.mark.parametrize(('how', 'share'), [('int8', 0.01), ('fp8', 0.06)])
def test_quantised_weights(how, share, small_sd_config, tmp_path):
    plain, small = latent(small_sd_config), latent(small_sd_config, quantise=how)
    got, want = small(images()), plain(images())
    assert_near(got, want, share)
    assert not torch.equal(got[-1], want[-1])
    kept = MODELS.build(
        dict(type='mmdiffrep.CachedBackbone', dtype='fp32', backbone=dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.StableDiffusion', config=small_sd_config, random_seed=0),
            taps=['up_blocks.1'], quantise=how, **IMAGE)))  # fmt: skip
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


# ---- a budget of memory ---------------------------------------------------------------------------------------


def test_peak_bytes_by_hand():
    first, second = nn.Linear(8, 100, bias=False), nn.Linear(100, 4, bias=False)

    def call(rows):
        x = torch.empty(rows, 8)
        hidden = first(x)
        hidden.relu_()  # in place
        return second(hidden.view(rows, 100))  # a view

    with torch.no_grad():
        assert [peak_bytes(lambda rows=rows: call(rows)) for rows in (1, 5)] == [4 * (8 + 100 + 4), 5 * 4 * (8 + 100 + 4)]

        def freed():
            x = torch.empty(1, 8)
            x = first(x)
            return second(x)  # the input is gone by then, not while the first layer runs

        assert peak_bytes(freed) == 4 * max(8 + 100, 100 + 4)
    assert rows_within(1000, lambda rows: 100 + 50 * rows) == (18, 150)
    assert rows_within(10, lambda rows: 100 + 50 * rows) == (1, 150)


def test_peak_bytes_agree_with_torchs_own_tracker(tiny_denoiser):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    net = tiny_denoiser().unet.requires_grad_(True)  # which the tracker asks for; activations are kept

    def call(rows):
        return net(torch.empty(rows, 3, 32, 32), torch.zeros(rows)).sample.sum()

    for rows in (1, 3):
        tracker = MemTracker()
        with FakeTensorMode(allow_non_fake_inputs=True), tracker:
            call(rows)
        weights = sum(p.nbytes for p in net.parameters())
        want = tracker.get_tracker_snapshot('peak')[torch.device('cpu')]['Total'] - weights
        assert peak_bytes(lambda rows=rows: call(rows)) == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize('kind', ['shared', 'per_image'])
def test_a_budget_sets_how_many_go_at_once(small_sd_config, kind, monkeypatch):
    noise = NoisePolicy(kind, 0, 3)
    net = StableDiffusion(config=small_sd_config, random_seed=0, latent='sample')
    taps, x = ['vae.encoder.down_blocks.0', 'up_blocks.0', 'up_blocks.1'], images(4)
    plain = FeatureExtractor(net, taps, [10, 90], noise, looks=1)
    with torch.no_grad():
        want = plain(x)
        sizes = [peak_bytes(lambda n=n: net.encode_tapped(torch.empty(n, 3, 32, 32), taps[:1])) for n in (1, 2)]
        budget = sizes[0] + 1.5 * (sizes[1] - sizes[0])  # two images, not three
        extractor = FeatureExtractor(net, taps, [10, 90], noise, memory=budget / 2**30)
        seen = dict(encoded=[], looked=[])
        encode, look = net.encode_tapped, extractor.look
        monkeypatch.setattr(net, 'encode_tapped', lambda image, *more, **kw: seen['encoded'].append(len(image)) or encode(image, *more, **kw))
        monkeypatch.setattr(extractor, 'look', lambda x_t, *more: seen['looked'].append(len(x_t)) or look(x_t, *more))
        assert_near(extractor(x), want)
        fit = extractor._fits['noised images', (4, 16, 16)]
        most = peak_bytes(lambda: look(torch.empty(fit, 4, 16, 16), torch.full((fit,), 10), net.default_condition(fit)))
        assert most <= budget < most * (fit + 1) / fit * 1.1
        # one and two to find out, then the images in two parts of six looks, each as full as fits
        assert seen['encoded'] == [1, 2, 2, 2]
        assert seen['looked'][:2] == [1, 2] and max(seen['looked'][2:]) <= fit and sum(seen['looked'][2:]) == 4 * 6
        seen['encoded'].clear()
        extractor(x)
        assert seen['encoded'] == [2, 2]  # what was found out stays
        plenty = FeatureExtractor(net, taps, [10, 90], noise, memory=1)
        all_at_once, look = [], plenty.look
        monkeypatch.setattr(plenty, 'look', lambda x_t, *more: all_at_once.append(len(x_t)) or look(x_t, *more))
        assert_near(plenty(x), want)
        assert all_at_once == [1, 2, 24]  # more than the eight that go together without a budget
        with pytest.warns(UserWarning, match='needs about .* GiB beside the weights'):
            small = FeatureExtractor(net, taps, [10, 90], noise, memory=1e-6)(x)
        assert_near(small, want)
    for wrong in (0, -1, 'much'):
        with pytest.raises(ValueError, match='give GiB, more than 0'):
            FeatureExtractor(net, taps, 10, noise, memory=wrong)


def test_a_budget_in_a_backbone(tiny_config, small_sd_config):
    """With windows and compiled looks, too; a batch that gradients pass through is not split."""
    for build, config, more in ((unet, tiny_config, dict(windows=dict(size=16))), (unet, SMALLEST, dict(compile=dict(backend='eager'))), (latent, small_sd_config, {})):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            model, plain = build(config, memory=1e-5, **more), build(config, **more)
        with pytest.warns(UserWarning, match='is tried all the same'):
            assert_near(model(images()), plain(images()))
    model = latent(small_sd_config, memory=1e-5, grad_through=True)
    image = images().requires_grad_()
    model(image)[0].sum().backward()
    assert image.grad.abs().max() > 0 and not model.extractor._fits

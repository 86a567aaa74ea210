"""ImplicitCaptioner: what it adds, that it adds nothing at first, what learns and what is saved."""

import copy

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from PIL import Image

from mmdiffrep.diffusion.denoiser import Condition
from mmdiffrep.models.backbones import DiffusionBackbone
from mmdiffrep.models.conditioners import ImplicitCaptioner
from mmdiffrep.openvocab.clip import load_clip
from mmdiffrep.openvocab.image_tower import load_image_tower
from mmdiffrep.registry import MODELS

pytest.importorskip('open_clip')
TAPS = ['up_blocks.1.attentions.0', 'up_blocks.2']
PLAIN = dict(image_mean=[127.5] * 3, image_std=[127.5] * 3)
TOY = dict(name='mmdiffrep/toy-clip', pretrained=None)
OTHER = dict(name='mmdiffrep/toy-clip', random_seed=3)
LEARNT = {'to_tokens.weight', 'token_pos', 'token_gate', 'to_time.weight', 'time_pos', 'time_gate'}


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


def picture(*shape, seed=0):
    """8-bit images in [-1, 1]."""
    return pixels(*(shape or (2, 3, 16, 24)), seed=seed) / 127.5 - 1


@pytest.fixture(scope='module', autouse=True)
def quick(traces_once):
    """Networks of one structure have one trace; CLIP is read once."""
    from mmdiffrep.models.conditioners import implicit_captioner

    known = {}

    def load(**options):
        key = str(sorted(options.items()))
        if key not in known:
            known[key] = load_image_tower(**options)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implicit_captioner, 'load_image_tower', load)
        yield


@pytest.fixture
def build(small_sd):
    def make(conditioner=True, clip=TOY, with_time=True, **options):
        torch.manual_seed(0)
        if conditioner:
            options['conditioner'] = dict(type='mmdiffrep.ImplicitCaptioner', clip=clip, with_time=with_time)
        return DiffusionBackbone(small_sd(), TAPS, timesteps=0, **PLAIN, **options)

    return make


def opened(backbone):
    """Both gates half open."""
    with torch.no_grad():
        for name, p in backbone.conditioner.named_parameters():
            if name.endswith('gate'):
                p.fill_(0.5)
    return backbone


# ---- the image tower ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size, tolerance', [((64, 64), 1e-5), ((150, 150), 0.02), ((48, 100), 0.02), ((40, 40), 0.02)])
def test_embeddings_are_open_clips_own(size, tolerance):
    """PIL's resizing rounds to 8 bits, ours does not."""
    smooth = pixels(3, 8, 8).float()[None]
    image = torch.nn.functional.interpolate(smooth, size, mode='bicubic').clamp(0, 255).round()[0]
    model, preprocess, _ = load_clip('mmdiffrep/toy-clip')
    with torch.no_grad():
        prepared = preprocess(Image.fromarray(image.permute(1, 2, 0).numpy().astype(np.uint8)))[None]
        want = model.encode_image(prepared)
    tower = load_image_tower('mmdiffrep/toy-clip')
    rgb = image[None] / 127.5 - 1
    assert (tower.prepare(rgb) - prepared).abs().max() < max(tolerance, 1e-4) * 1.5
    got = tower(rgb)
    assert got.shape == (1, tower.width) and not got.requires_grad
    assert (got - want).norm() / want.norm() < tolerance
    assert abs(got.norm() - 1) > 0.1  # not normalised


def tiny_transformers(folder, seed=0):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=10, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(folder)
    processor = CLIPImageProcessor(
        size=dict(height=32, width=32), do_center_crop=False, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return model


def test_transformers_clip(tmp_path, build):
    model = tiny_transformers(tmp_path)
    tower = load_image_tower(str(tmp_path), kind='transformers')
    image = pixels(2, 3, 32, 32)
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        want = model(pixel_values=(image / 255 - mean) / std).image_embeds
    torch.testing.assert_close(tower(image / 127.5 - 1), want)
    assert (tower.width, tower.size) == (10, (32, 32)) and tower.fingerprint.startswith('_Embeds sha256:')
    backbone = opened(build(clip=dict(kind='transformers', name=str(tmp_path))))
    assert backbone.conditioner.to_tokens.in_features == 10
    assert not torch.allclose(backbone(picture())[0], build(conditioner=False)(picture())[0])


def test_random_weights_by_a_seed():
    state = torch.get_rng_state()
    a, b, c = (load_image_tower('mmdiffrep/toy-clip', random_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    image = picture(1, 3, 64, 64)
    assert torch.equal(a(image), b(image)) and not torch.allclose(a(image), c(image))
    assert a.fingerprint == b.fingerprint != c.fingerprint and a.fingerprint.startswith('random:0:')


def test_the_fingerprint_is_the_content(tmp_path):
    names = []
    for seed in (0, 0, 1):
        tiny_transformers(tmp_path / str(len(names)), seed)
        names.append(load_image_tower(str(tmp_path / str(len(names))), kind='transformers').fingerprint)
    assert names[0] == names[1] != names[2]


def test_low_precision():
    full, low = (load_image_tower('mmdiffrep/toy-clip', dtype=dtype) for dtype in ('fp32', 'bf16'))
    assert next(low.parameters()).dtype == torch.bfloat16 and full.fingerprint == low.fingerprint
    image = picture(2, 3, 64, 64)
    assert (low(image).float() - full(image)).norm() / full(image).norm() < 0.05
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(full(image), full(image.clone())) and full(image).dtype == torch.float32


def test_wrong_towers(tmp_path):
    for options, kind, message in [
        (dict(name='mmdiffrep/toy-clip', kind='timm'), ValueError, "kind='timm'.*allowed: kind of"),
        (dict(name='mmdiffrep/toy-clip', dtype='half'), ValueError, "dtype='half'.*dtype of"),
        (dict(name='ViT-B-32', pretrained='openai', random_seed=0), ValueError, "pretrained='openai' has no use"),
        (dict(name='ViT-B-31', random_seed=0), ValueError, "'ViT-B-31' is unknown to open_clip. Nearest: .*ViT-B-32"),
        (dict(name='ViT-B-32'), ValueError, "'ViT-B-32' needs weights"),
        (dict(name=str(tmp_path), kind='transformers'), FileNotFoundError, 'cannot be loaded by transformers'),
        (dict(name=str(tmp_path), random_seed=0), FileNotFoundError, "Give a folder in open_clip's format"),
    ]:
        with pytest.raises(kind, match=message):
            load_image_tower(**options)


# ---- what the network is told ---------------------------------------------------------------------------------


def test_tokens_and_time_by_the_formula():
    captioner = ImplicitCaptioner(token_channels=5, time_channels=7, token_count=3, clip=TOY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in captioner.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    image = picture(2, 3, 64, 64)
    given = Condition(tokens=torch.randn(1, 3, 5), time_bias=torch.randn(1, 7), class_ids=torch.tensor([4, 4]))
    before = copy.deepcopy(given)
    got = captioner(image, given)
    p = load_image_tower('mmdiffrep/toy-clip')(image)
    for b in range(2):
        for k in range(3):
            shift = captioner.to_tokens.weight @ p[b] + captioner.token_pos[0, k]
            want = given.tokens[0, k] + torch.tanh(captioner.token_gate[0, k]) * shift
            torch.testing.assert_close(got.tokens[b, k], want, rtol=1e-4, atol=1e-5)
        bias = torch.tanh(captioner.time_gate[0]) * (captioner.to_time.weight @ p[b] + captioner.time_pos[0])
        torch.testing.assert_close(got.time_bias[b], given.time_bias[0] + bias, rtol=1e-4, atol=1e-5)
    assert got.class_ids is given.class_ids
    assert torch.equal(given.tokens, before.tokens) and torch.equal(given.time_bias, before.time_bias)


def test_how_it_begins():
    captioner = ImplicitCaptioner(token_channels=64, time_channels=256, clip=TOY)
    shapes = {n: tuple(p.shape) for n, p in captioner.named_parameters()}
    assert shapes == {
        'to_tokens.weight': (64, 96), 'token_pos': (1, 77, 64), 'token_gate': (1, 77, 64),
        'to_time.weight': (256, 96), 'time_pos': (1, 256), 'time_gate': (1, 256),
    }  # fmt: skip
    assert not captioner.token_gate.any() and not captioner.time_gate.any()
    assert captioner.token_pos.std().item() == pytest.approx(0.02, rel=0.05)
    assert captioner.token_pos.abs().max() < 0.12


@pytest.mark.parametrize('options', [dict(), dict(dtype='bf16'), dict(windows=dict(size=16)), dict(with_time=False)])
def test_at_the_start_nothing_changes(build, options):
    plain = {key: value for key, value in options.items() if key != 'with_time'}
    without, at_first = build(conditioner=False, **plain)(picture()), build(**options)(picture())
    assert all(torch.equal(a, b) for a, b in zip(without, at_first))
    later = opened(build(**options))(picture())
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(without, later))


def test_each_image_has_its_own_caption(build):
    backbone = opened(build())
    image = picture(3, 3, 16, 16)
    together = backbone(image)
    for k in range(3):
        for a, b in zip(backbone(image[k : k + 1]), together):
            torch.testing.assert_close(a[0], b[k], rtol=1e-4, atol=1e-5)


def test_each_window_has_its_own_caption(build):
    """CLIP sees the window as the network does, enlarged."""
    backbone = opened(build(windows=dict(size=16)))
    seen, tower = [], backbone.conditioner.clip.frozen
    tower.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = picture(1, 3, 12, 24)
    backbone(image)
    want = [torch.nn.functional.interpolate(image[..., x : x + 12], (16, 16), mode='bicubic') for x in (0, 12)]
    torch.testing.assert_close(torch.cat(seen), torch.cat(want).clamp(-1, 1))


# ---- what learns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('options', [dict(), dict(with_cp=True), dict(windows=dict(size=16, batch=2))])
def test_gradients_reach_exactly_the_captioner(build, options):
    backbone = build(**options).train()
    assert backbone.grad_through and {n for n, _ in backbone.named_parameters()} == {f'conditioner.{n}' for n in LEARNT}
    for gates in ('shut', 'open'):
        backbone.zero_grad()
        sum(m.square().sum() for m in backbone(picture())).backward()
        for name, p in backbone.conditioner.named_parameters():
            assert p.grad is not None
            assert (p.grad.abs().sum() > 0) == (gates == 'open' or name.endswith('gate')), (gates, name)
        assert all(p.grad is None for p in backbone.denoiser.parameters())
        assert all(p.grad is None and not p.requires_grad for p in backbone.conditioner.clip.frozen.parameters())
        opened(backbone)


def test_checkpointing_gives_the_same_gradients(build):
    grads = []
    for with_cp in (False, True):
        backbone = opened(build(with_cp=with_cp)).train()
        sum(m.square().sum() for m in backbone(picture())).backward()
        grads.append([p.grad for p in backbone.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_gradient_is_the_slope(build):
    backbone = opened(build()).double()
    loss = lambda: backbone(picture().double())[0].square().mean()  # noqa: E731
    loss().backward()
    for name, place in [('token_gate', (0, 5, 3)), ('to_time.weight', (4, 7)), ('to_tokens.weight', (2, 9))]:
        p = backbone.conditioner.get_parameter(name)
        slopes = []
        with torch.no_grad():
            for step in (1e-4, -1e-4):
                p[place] += step
                slopes.append(loss())
                p[place] -= step
        torch.testing.assert_close(p.grad[place], (slopes[0] - slopes[1]) / 2e-4, rtol=1e-4, atol=1e-12)


# ---- what is saved --------------------------------------------------------------------------------------------


def test_clip_is_in_no_checkpoint_optimizer_or_copy(build):
    backbone = opened(build())
    keys = {k.removeprefix('conditioner.') for k in backbone.state_dict() if k.startswith('conditioner.')}
    assert keys == LEARNT | {'clip.frozen_digest'}
    ema = ExponentialMovingAverage(backbone)
    tower, theirs = backbone.conditioner.clip.frozen, ema.module.conditioner.clip.frozen
    assert all(a is b for a, b in zip(tower.parameters(), theirs.parameters()))
    ema.update_parameters(backbone)
    assert all(torch.equal(a, b) for a, b in zip(ema.module(picture()), backbone(picture())))
    clone = copy.deepcopy(backbone)
    assert clone.conditioner.token_gate is not backbone.conditioner.token_gate
    assert all(torch.equal(a, b) for a, b in zip(clone(picture()), backbone(picture())))


def test_complete_again_after_load(build, tmp_path):
    first = opened(build())
    torch.save(first.state_dict(), tmp_path / 'x.pth')
    second = build()
    second.load_state_dict(torch.load(tmp_path / 'x.pth', weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(first(picture()), second(picture())))


def test_another_clip_is_refused(build):
    with pytest.raises(ValueError, match=r'trained on other frozen CLIP weights .*random:3:'):
        build(clip=OTHER).load_state_dict(build().state_dict())


def test_train_and_to_reach_what_they_should(build):
    backbone = build().train()
    tower = backbone.conditioner.clip.frozen
    assert backbone.conditioner.training and not any(m.training for m in tower.modules())
    backbone.to(torch.float64)
    assert {p.dtype for p in tower.parameters()} == {torch.float64}
    assert backbone(picture().double())[0].dtype == torch.float64
    assert {p.device.type for p in build().to('meta').conditioner.clip.frozen.parameters()} == {'meta'}


# ---- mistakes, and the real size ------------------------------------------------------------------------------


def test_a_network_without_text_is_refused(tiny_config):
    with pytest.raises(ValueError, match="'mmdiffrep.ImplicitCaptioner' does not fit PixelUNet, which says nothing"):
        MODELS.build(
            dict(
                type='mmdiffrep.DiffusionBackbone', taps=['mid_block'], conditioner=dict(type='mmdiffrep.ImplicitCaptioner'),
                denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config),
            )
        )  # fmt: skip
    captioner = ImplicitCaptioner(token_channels=4, time_channels=4, token_count=2, clip=TOY)
    for condition in (None, Condition(class_ids=torch.zeros(1).long())):
        with pytest.raises(ValueError, match='ImplicitCaptioner got a condition without text tokens'):
            captioner(picture(1, 3, 8, 8), condition)
    with pytest.raises(ValueError, match=r'tokens of shape \(1, 3, 4\) were given; allowed: 2 tokens'):
        captioner(picture(1, 3, 8, 8), Condition(tokens=torch.zeros(1, 3, 4)))
    with pytest.raises(ValueError, match='with_time=True, and time_channels is None'):
        ImplicitCaptioner(token_channels=4, clip=TOY)


def test_the_papers_size():
    """SD 1.5 and ViT-L/14 at 336²: W1 768 × 768, pos and a 77 × 768, W2 768 × 1280, pos2 and a_t 1280."""
    with torch.device('meta'):
        captioner = ImplicitCaptioner(768, 1280, 77, clip=dict(name='ViT-L-14-336', random_seed=0))
    tower = captioner.clip.frozen
    assert (tower.width, tower.size) == (768, (336, 336))
    assert sum(p.numel() for p in captioner.parameters()) == 768 * 768 + 2 * 77 * 768 + 768 * 1280 + 2 * 1280 == 1_693_696
    assert 303e6 < sum(p.numel() for p in tower.parameters()) < 305e6

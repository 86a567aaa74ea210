"""DiffusionBackbone with Stable Diffusion and DiT: maps, prompts, what is trained, saved and copied."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.models.backbones import DiffusionBackbone
from mmdiffrep.registry import MODELS

pytestmark = [
    pytest.mark.usefixtures('traces_once'),
    pytest.mark.filterwarnings('ignore::FutureWarning'),
]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PYRAMID = dict(type='mmdiffrep.StridePyramid', out_channels=8, width=8, groups=2, strides=(2, 4, 8))
BLOCK = 'attentions.0.transformer_blocks.0'
TAPS = dict(
    sd=['vae.encoder.down_blocks.1.resnets.0:in', 'up_blocks.0.resnets.1:in', f'up_blocks.1.{BLOCK}', 'up_blocks.1',
        f'up_blocks.1.{BLOCK}.attn2:probs', 'vae.decoder.up_blocks.0.resnets.1:in'],
    dit=['vae.encoder.down_blocks.1.resnets.0:in', 'pos_embed', 'transformer_blocks.1', 'vae.decoder.mid_block'],
)  # fmt: skip
STRIDES = dict(sd=[2, 8, 4, 2, 4, 2], dit=[2, 4, 4, 2])
FAMILY = pytest.mark.parametrize('family', ['sd', 'dit'])


def picture(*shape, seed=0):
    """8-bit images, normalised as stock configs do."""
    image = torch.randint(
        0, 256, shape or (2, 3, 16, 24), generator=torch.Generator().manual_seed(seed)
    ).float()
    return (image - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


@pytest.fixture
def build(small_sd_config, small_dit_config):
    def make(family, taps=None, random_seed=0, denoiser=None, **options):
        kind, config = {
            'sd': ('StableDiffusion', small_sd_config),
            'dit': ('DiT', small_dit_config),
        }[family]
        net = dict(
            type=f'mmdiffrep.{kind}', config=config, random_seed=random_seed, **(denoiser or {})
        )
        return MODELS.build(
            dict(
                type='mmdiffrep.DiffusionBackbone',
                denoiser=net,
                taps=taps or TAPS[family],
                **options,
            )
        )

    return make


@pytest.mark.parametrize('family', ['sd', 'dit'])
def test_several_draws_look_together_at_what_the_autoencoder_saw_once(build, family):
    noise = dict(kind='shared', draws=3)
    options = dict(class_id=3) if family == 'dit' else {}
    together, alone = (
        build(family, noise=noise, denoiser=dict(latent='sample'), looks=looks, **options) for looks in (6, 1)
    )
    encoded = []
    together.denoiser.vae.encoder.register_forward_hook(lambda *_: encoded.append(1))
    for images in (picture(), picture(1, 3, 16, 24)):
        for got, want in zip(together(images), alone(images)):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert len(encoded) == 2


def test_a_condition_is_repeated_with_its_batch():
    told = Condition(
        class_ids=torch.tensor([5]), tokens=torch.zeros(1, 2, 3), time_bias=torch.tensor([[1.0], [2.0]])
    ).repeated(3)
    assert told.class_ids.tolist() == [5] * 3 and told.tokens.shape == (1, 2, 3)
    assert told.time_bias.flatten().tolist() == [1, 2] * 3


# ---- maps -----------------------------------------------------------------------------------------------------


@FAMILY
@pytest.mark.parametrize('size', [(16, 24), (15, 41), (9, 8)])
def test_declared_channels_and_strides_are_real(build, family, size):
    for adapter in (None, PYRAMID):
        backbone = build(family, adapter=adapter)
        maps = backbone(picture(1, 3, *size))
        assert [m.shape[1] for m in maps] == backbone.out_channels
        assert [tuple(m.shape[-2:]) for m in maps] == [
            tuple(-(-n // s) for n in size) for s in backbone.out_strides
        ]  # fmt: skip
        assert backbone.out_strides == (STRIDES[family] if adapter is None else [2, 4, 8])


@FAMILY
def test_maps_are_the_denoisers_own(build, family):
    """Step by step: undo the normalisation, encode, noise by the shared draw, look."""
    from mmdiffrep.diffusion.noise import seeded_noise

    backbone = build(family, timesteps=100, noise=dict(kind='shared', seed=4))
    denoiser, image = backbone.denoiser, picture()
    rgb = (image * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)) / 127.5 - 1
    posterior = denoiser.vae.encode(rgb).latent_dist
    x0 = posterior.mean * 0.18215
    product = denoiser.schedule.alphas_cumprod[100]
    x_t = product.sqrt() * x0 + (1 - product).sqrt() * seeded_noise(4, 0, 0, (4, 8, 12))
    moving = [tap for tap in TAPS[family] if not tap.startswith('vae')]
    found = denoiser.features(x_t, torch.tensor([100, 100]), taps=moving)
    found |= denoiser.encode_tapped(rgb, [tap for tap in TAPS[family] if tap.startswith('vae')])[1]
    for got, tap in zip(backbone(image), TAPS[family]):
        torch.testing.assert_close(got, found[tap], rtol=1e-4, atol=1e-5)


@FAMILY
def test_timesteps_come_t_major_with_autoencoder_taps_once(build, family):
    taps = TAPS[family]
    both = build(family, timesteps=[10, 500])
    apart = [build(family, timesteps=t)(picture()) for t in (10, 500)]
    moving = [k for k, tap in enumerate(taps) if not tap.startswith('vae')]
    expected = [*apart[0], *(apart[1][k] for k in moving)]
    maps = both(picture())
    assert (
        len(maps)
        == len(expected)
        == len(both.out_channels)
        == len(both.out_strides)
        < 2 * len(taps)
    )
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(maps, expected))
    assert [m.shape[1] for m in maps] == both.out_channels
    pyramid = build(family, timesteps=[10, 500], adapter=PYRAMID)
    assert [m.shape[1] for m in pyramid(picture())] == [8, 8, 8]


@FAMILY
def test_batch_of_one_and_three_agree(build, family):
    backbone = build(family, noise=dict(kind='per_image'), denoiser=dict(latent='sample'))
    image = picture(3, 3, 15, 18)
    together = backbone(image)
    for i in range(3):
        for a, b in zip(backbone(image[i : i + 1]), together):
            torch.testing.assert_close(a[0], b[i], rtol=1e-4, atol=1e-4)


@FAMILY
def test_low_precision_is_close(build, family):
    expected, low = build(family)(picture()), build(family, dtype='bf16')
    assert {p.dtype for p in low.denoiser.parameters()} == {torch.bfloat16}
    for got, want in zip(low(picture()), expected):
        assert got.dtype == torch.float32
        assert (got - want).norm() / want.norm() < 0.06


def test_classes_and_texts_are_told(build):
    """class_id goes to a DiT; Stable Diffusion refuses it."""
    backbone, other = build('dit', class_id=3), build('dit', class_id=4)
    denoiser, image = backbone.denoiser, picture()
    x0 = denoiser.encode(backbone.to_rgb(image))
    t = torch.full((2,), 50)
    x_t = denoiser.schedule.add_noise(x0, backbone.noise.draw(tuple(x0.shape)), t)
    told = denoiser.features(
        x_t, t, Condition(class_ids=torch.tensor([3, 3])), ['transformer_blocks.1']
    )
    assert torch.equal(backbone(image)[2], told['transformer_blocks.1'])
    assert not torch.equal(backbone(image)[2], other(image)[2])
    with pytest.raises(ValueError, match=r'class ids \[11, 11\] are unknown; allowed: 0 to 10'):
        build('dit', class_id=11)(image)
    with pytest.raises(ValueError, match=r"StableDiffusion cannot be told \['class_ids'\]"):
        build('sd', class_id=3)(image)


def test_a_prompt_for_each_image(sd_folder):
    taps = ['down_blocks.1', f'up_blocks.1.{BLOCK}.attn2:probs']

    def make(**options):
        net = dict(
            type='mmdiffrep.StableDiffusion', pretrained=str(sd_folder('few words')), **options
        )
        return MODELS.build(dict(type='mmdiffrep.DiffusionBackbone', denoiser=net, taps=taps))

    image = picture()
    backbone = make(prompt='a cat', keep_text_encoder=True)
    fixed = backbone(image)
    with backbone.prompted(['a cat', 'two dogs']):
        each = backbone(image)
        with pytest.raises(
            ValueError, match='2 prompts were given for 1 images: give one for each'
        ):
            backbone(image[:1])
    assert all(
        torch.equal(a, b) for a, b in zip(backbone(image), fixed)
    )  # afterwards the fixed prompt is back
    dogs = make(prompt='two dogs')
    for got, cat, dog in zip(each, fixed, dogs(image)):
        torch.testing.assert_close(got[0], cat[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[1], dog[1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(cat[1], dog[1], rtol=1e-3)
    with (
        pytest.raises(
            ValueError, match='released after the fixed prompt: set keep_text_encoder=True'
        ),
        dogs.prompted(['a', 'b']),
    ):
        dogs(image)
    clone = copy.deepcopy(backbone)
    with clone.prompted(['a cat', 'two dogs']):
        assert all(torch.equal(a, b) for a, b in zip(clone(image), each))
    assert clone.denoiser._text[0] is backbone.denoiser._text[0]
    assert not any('text' in key for key in backbone.state_dict())


# ---- attention probabilities that depend on the image's size ---------------------------------------------------


@pytest.mark.parametrize('family, tap', [('sd', f'up_blocks.1.{BLOCK}.attn1:probs'), ('sd', f'mid_block.{BLOCK}.attn1:head_probs'),
                                         ('dit', 'transformer_blocks.0.attn1:probs'),
                                         ('sd', 'vae.encoder.mid_block.attentions.0:probs')])  # fmt: skip
def test_an_adapter_cannot_be_built_on_a_channel_for_each_place(build, family, tap):
    for adapter in (PYRAMID, dict(type='mmdiffrep.ConcatUpsample')):
        with pytest.raises(
            ValueError,
            match=rf"taps \['{tap}'\] give a channel for each place .*Leave the adapter out.*attn2:probs",
        ):
            build(family, [tap, TAPS[family][0]], adapter=adapter, timesteps=[1, 2])
    backbone = build(family, [tap, TAPS[family][0]])
    assert backbone.out_channels == [-1, 8] and backbone.out_strides[0] in (2, 4, 8)
    stride, heads = backbone.out_strides[0], 2 if tap.endswith('head_probs') else 1
    for size in [(16, 16), (16, 40)]:
        places = (size[0] // stride) * (size[1] // stride)
        assert backbone(picture(1, 3, *size))[0].shape == (
            1,
            heads * places,
            size[0] // stride,
            size[1] // stride,
        )


def test_probabilities_over_words_have_a_fixed_number_of_channels(build):
    tap = f'up_blocks.1.{BLOCK}.attn2'
    for denoiser, count in ((None, 77), (dict(class_names=['cat', 'dog', 'sky']), 3)):
        backbone = build(
            'sd', [f'{tap}:probs', f'{tap}:head_probs'], adapter=PYRAMID, denoiser=denoiser
        )
        assert [info.channels for info in backbone.tap_infos] == [count, 2 * count]
        assert len(backbone(picture())) == 3


def test_taps_that_give_no_map(build):
    for family, tap in (
        ('sd', 'time_embedding'),
        ('dit', 'transformer_blocks.0.norm1.emb'),
        ('sd', 'vae.quant_conv'),
    ):
        if tap == 'vae.quant_conv':
            assert build(family, [tap]).out_channels == [8]
            continue
        with pytest.raises(
            ValueError,
            match=rf"taps \['{tap}'\] give no maps .* that cover the image. tools/list_taps.py",
        ):
            build(family, [tap])


# ---- what is trained, saved and copied ------------------------------------------------------------------------


@FAMILY
def test_frozen_weights_are_nowhere(build, family):
    backbone = build(family, adapter=PYRAMID)
    names = [n for n, _ in backbone.named_parameters()]
    assert names and all(n.startswith('adapter.') for n in names)
    assert all(
        k.startswith('adapter.') or k == 'holder.frozen_digest' for k in backbone.state_dict()
    )
    wrapper = build_optim_wrapper(backbone, dict(optimizer=dict(type='SGD', lr=0.1)))
    held = {id(p) for g in wrapper.optimizer.param_groups for p in g['params']}
    assert held == {id(p) for p in backbone.parameters()}
    assert not any('vae' in n or 'tokens' in n for n, _ in backbone.named_buffers())

    ema = ExponentialMovingAverage(backbone)
    shared = ema.module.denoiser
    for name, p in backbone.denoiser.named_parameters():
        assert shared.get_parameter(name) is p, name
    ema.update_parameters(backbone)
    assert all(torch.equal(a, b) for a, b in zip(ema.module(picture()), backbone(picture())))
    sum(m.square().sum() for m in backbone.train()(picture())).backward()
    assert all(p.grad is None for p in backbone.denoiser.parameters())


@pytest.mark.parametrize(
    'family, trainable', [('sd', False), ('sd', True), ('sd', 'part'), ('dit', 'part')]
)
def test_complete_again_after_load(build, tmp_path, family, trainable):
    part = {'sd': ['up_blocks.1', 'vae.encoder'], 'dit': ['transformer_blocks.1']}[family]
    options = dict(adapter=PYRAMID, trainable=part if trainable == 'part' else trainable)
    first = build(family, **options)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.01)
    torch.save(first.state_dict(), tmp_path / 'x.pth')
    torch.manual_seed(5)
    second = build(family, **options)
    second.load_state_dict(torch.load(tmp_path / 'x.pth', weights_only=True))
    first.eval(), second.eval()
    assert all(torch.equal(a, b) for a, b in zip(first(picture()), second(picture())))
    if trainable is not True:
        with pytest.raises(ValueError, match='trained on other frozen diffusion weights'):
            build(family, random_seed=1, **options).load_state_dict(first.state_dict())


def test_another_prompt_is_other_frozen_weights(build, tmp_path):
    from safetensors.torch import save_file

    save_file({'x': torch.ones(3, 12)}, tmp_path / 'a.safetensors')
    state = build('sd', adapter=PYRAMID).state_dict()
    with pytest.raises(ValueError, match='trained on other frozen diffusion weights'):
        build(
            'sd',
            ['mid_block'],
            adapter=PYRAMID,
            denoiser=dict(tokens=str(tmp_path / 'a.safetensors')),
        ).load_state_dict(state)


@pytest.mark.parametrize('family, whole', [('sd', False), ('sd', True), ('dit', True)])
def test_gradients_go_to_all_of_the_trained_parts(build, family, whole):
    part = {'sd': ['down_blocks.1.attentions', 'up_blocks'], 'dit': ['transformer_blocks']}[family]
    part = True if whole else part
    grads = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = build(family, trainable=part, with_cp=with_cp, adapter=PYRAMID).train()
        sum(m.square().sum() for m in backbone(picture())).backward()
        for name, p in backbone.denoiser.network.named_parameters():
            assert (p.grad is not None) == p.requires_grad, name
            assert whole or not p.requires_grad or name.startswith(tuple(part)), name
        grads.append({n: p.grad for n, p in backbone.named_parameters()})
    assert (
        all(torch.equal(g, grads[1][n]) for n, g in grads[0].items() if g is not None)
        and len(grads[0]) > 30
    )


@FAMILY
def test_the_cut_network_holds_nothing_behind_its_taps(build, family):
    tap = {'sd': 'up_blocks.0', 'dit': 'transformer_blocks.0'}[family]
    denoiser = build(family, [tap]).denoiser
    assert denoiser.vae.decoder is None
    names = {n.rsplit('.', 1)[0] for n, _ in denoiser.network.named_parameters()}
    assert not any(
        n.startswith(('up_blocks.1', 'transformer_blocks.1', 'conv_out', 'proj_out')) for n in names
    )
    assert names


def test_to_reaches_tokens_and_autoencoder(build):
    backbone = build('sd').to(torch.float64)
    assert (
        {p.dtype for p in backbone.denoiser.parameters()}
        == {torch.float64}
        == {backbone.denoiser.tokens.dtype}
    )
    assert backbone(picture().double())[0].dtype == torch.float64
    assert isinstance(build('sd'), DiffusionBackbone)
    assert {v.device.type for v in build('sd').to('meta').denoiser.buffers()} == {'meta'}

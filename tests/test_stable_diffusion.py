"""StableDiffusion: what it is told, its noise schedules against diffusers' schedulers, and architectures that it is not."""

import copy

import pytest
import torch

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.model_files import named_config
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.usefixtures('traces_once')
TAPS = ['down_blocks.0', 'mid_block', 'up_blocks.1']


@pytest.fixture(scope='module')
def sd(small_sd_config):
    return StableDiffusion(config=small_sd_config)


def batch(n=2, size=(8, 12), seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, *size, generator=g), torch.randint(1000, (n,), generator=g)


def words(n, count=5, seed=4):
    return torch.randn(n, count, 12, generator=torch.Generator().manual_seed(seed))


# ---- what it is told ------------------------------------------------------------------------------------------


def test_its_own_tokens_are_the_default(sd):
    x, t = batch()
    silent = sd.features(x, t, taps=TAPS)
    for condition in (
        Condition(),
        sd.default_condition(2),
        Condition(tokens=sd.tokens.repeat(2, 1, 1)),
    ):
        told = sd.features(x, t, condition, TAPS)
        assert all(torch.equal(silent[tap], told[tap]) for tap in TAPS)
    one = sd.features(x, t, Condition(tokens=words(1)), TAPS)
    each = sd.features(x, t, Condition(tokens=words(1).expand(2, -1, -1)), TAPS)
    assert all(torch.equal(one[tap], each[tap]) for tap in TAPS)
    assert not torch.equal(one['mid_block'], silent['mid_block'])


def test_gradients_reach_the_tokens(sd):
    x, t = batch()
    tokens = words(1).requires_grad_(True)
    sd.features(x, t, Condition(tokens=tokens), TAPS)['up_blocks.1'].square().sum().backward()
    assert tokens.grad.abs().sum() > 0


@pytest.mark.parametrize('shape', [(1, 5, 13), (3, 5, 12), (5, 12)])
def test_tokens_that_do_not_fit(sd, shape):
    x, t = batch()
    with pytest.raises(
        ValueError, match=r'tokens of shape \(.*\) were given; allowed: \(1 or 2, L, 12\)'
    ):
        sd.features(x, t, Condition(tokens=torch.zeros(shape)), TAPS)


def test_classes_are_refused(sd):
    x, t = batch()
    with pytest.raises(
        ValueError,
        match=r"StableDiffusion cannot be told \['class_ids'\]: .* takes \['tokens', 'time_bias'\]",
    ):
        sd.features(x, t, Condition(class_ids=torch.zeros(2).long()), TAPS)


@pytest.mark.parametrize('rows', [1, 2])
def test_time_bias_is_added_to_the_time_embedding(sd, rows):
    """Against a network whose time embedding really gives its output plus the bias."""
    x, t = batch()
    bias = torch.randn(rows, 32, generator=torch.Generator().manual_seed(5)).requires_grad_(True)
    assert sd.condition_channels() == dict(token_channels=12, time_channels=32, token_count=77)
    found = sd.features(x, t, Condition(time_bias=bias), TAPS)
    found['up_blocks.1'].square().sum().backward()
    assert (bias.grad.abs().sum(1) > 0).all()

    other = copy.deepcopy(sd)
    inner, own = other.unet.time_embedding.forward, bias.detach().clone().requires_grad_(True)
    other.unet.time_embedding.forward = lambda *args: inner(*args) + own
    expected = other.features(x, t, taps=TAPS)
    expected['up_blocks.1'].square().sum().backward()
    assert all(torch.equal(found[tap], expected[tap]) for tap in TAPS)
    assert torch.equal(bias.grad, own.grad)
    assert not torch.equal(found['mid_block'], sd.features(x, t, taps=TAPS)['mid_block'])


def test_time_bias_and_an_injection_at_the_same_place_add_up(sd):
    x, t = batch()
    a, b = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(5))
    both = sd.features(x, t, Condition(time_bias=a), TAPS, {'time_embedding': b})
    assert torch.equal(
        both['mid_block'], sd.features(x, t, Condition(time_bias=a + b), TAPS)['mid_block']
    )
    with pytest.raises(
        ValueError,
        match="inject: a tensor of shape .* cannot be added to the activation at 'time_embedding'",
    ):
        sd.features(x, t, Condition(time_bias=torch.zeros(1, 33)), TAPS)


def test_time_bias_of_a_pixel_network(tiny_denoiser):
    denoiser = tiny_denoiser()
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([3])
    bias = torch.ones(1, 32)
    told = denoiser.features(x, t, Condition(time_bias=bias), ['mid_block'])['mid_block']
    added = denoiser.features(x, t, None, ['mid_block'], {'time_embedding': bias})['mid_block']
    assert torch.equal(told, added) and not torch.equal(
        told, denoiser.features(x, t, taps=['mid_block'])['mid_block']
    )
    with pytest.raises(ValueError, match=r"PixelUNet cannot be told \['tokens'\]"):
        denoiser.features(x, t, Condition(tokens=torch.zeros(1, 4, 12)), ['mid_block'])


def test_papers_name_its_blocks(sd):
    assert (
        str(sd.tap('dift:up.1')) == 'up_blocks.1'
        and str(sd.tap('dift:up.2:in')) == 'up_blocks.2:in'
    )
    x, t = batch()
    found = sd.features(x, t, taps=['dift:up.1', 'up_blocks.1'])
    assert found['dift:up.1'] is found['up_blocks.1'] and found['up_blocks.1'].shape[-2:] == (8, 12)
    with pytest.raises(ValueError, match="tap 'adm:out.5' cannot be read"):
        sd.tap('adm:out.5')


# ---- schedules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
@pytest.mark.parametrize('name', ['sd15', 'sd21'])
def test_noise_and_predictions_are_those_of_diffusers(small_sd, name, prediction):
    from diffusers import DDIMScheduler, DDPMScheduler

    entries = named_config(name)['scheduler']
    schedule = small_sd(scheduler=entries, prediction_type=prediction).schedule
    assert schedule.prediction == prediction
    entries = {k: v for k, v in entries.items() if k != '_class_name'} | dict(
        prediction_type=prediction
    )
    ddpm = DDPMScheduler(**{k: v for k, v in entries.items() if k not in ('set_alpha_to_one',)})
    ddim = DDIMScheduler(**entries)
    ddim.set_timesteps(1000)
    g = torch.Generator().manual_seed(0)
    x0, noise, output = torch.randn(3, 4, 4, 6, 5, generator=g).unbind(0)
    t = torch.tensor([0, 50, 500, 999])
    x_t = schedule.add_noise(x0, noise, t)
    torch.testing.assert_close(x_t, ddpm.add_noise(x0, noise, t))
    wanted = ddpm.get_velocity(x0, noise, t) if prediction == 'v_prediction' else noise
    torch.testing.assert_close(schedule.target(x0, noise, t), wanted)
    for k in range(4):
        one = slice(k, k + 1)
        theirs = ddim.step(output[one], t[k], x_t[one], eta=0).pred_original_sample
        torch.testing.assert_close(
            schedule.to_x0(output[one], x_t[one], t[one]), theirs, rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(
        schedule.to_x0(schedule.target(x0, noise, t), x_t, t), x0, rtol=1e-2, atol=1e-2
    )


def test_published_noise_at_t_0(small_sd):
    """ODISE's x_t at t = 0 of SD 1: 0.99957 z + 0.0292 eps."""
    alpha, sigma = small_sd(scheduler=named_config('sd15')['scheduler']).schedule.alpha_sigma(
        torch.tensor([0])
    )
    assert round(alpha.item(), 5) == 0.99957 and round(sigma.item(), 4) == 0.0292


def test_a_schedule_of_ones_own(small_sd):
    schedule = dict(_class_name='DDPMScheduler', num_train_timesteps=10)
    denoiser = small_sd(schedule=schedule, prediction_type='sample')
    assert len(denoiser.schedule) == 10 and denoiser.schedule.prediction == 'sample'
    with pytest.raises(
        ValueError, match="prediction_type 'velocity' is unknown; allowed: .*'v_prediction'"
    ):
        small_sd(prediction_type='velocity')
    with pytest.raises(
        ValueError, match='FlowMatchEulerDiscreteScheduler is not known to be variance-preserving'
    ):
        small_sd(schedule=dict(_class_name='FlowMatchEulerDiscreteScheduler'))


# ---- architectures --------------------------------------------------------------------------------------------


def test_random_weights_are_named_by_seed_configs_and_text(small_sd):
    a, b, c = small_sd(), small_sd(random_seed=0), small_sd(random_seed=1)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert torch.equal(a.unet.conv_in.weight, b.unet.conv_in.weight) and torch.equal(
        a.tokens, b.tokens
    )
    assert not torch.equal(a.vae.encoder.conv_in.weight, c.vae.encoder.conv_in.weight)
    assert not torch.equal(a.tokens, c.tokens) and a.tokens.shape == (1, 77, 12)
    assert small_sd(class_names=['cat', 'dog', 'sky']).tokens.shape == (1, 3, 12)
    assert small_sd(vae=dict(layers_per_block=2)).fingerprint != a.fingerprint
    assert (
        not any(p.requires_grad for p in a.parameters())
        and not a.unet.training
        and not a.vae.training
    )


def test_random_weights_read_no_text(small_sd):
    for options in (dict(), dict(keep_text_encoder=True)):
        with pytest.raises(
            ValueError, match='random weights has no text encoder for prompts: .* give pretrained='
        ):
            small_sd(**options).encode_text(['a photo'])


def test_what_is_no_stable_diffusion(small_sd, small_dit_config):
    for options, message in [
        (
            dict(unet=dict(_class_name='UNet2DModel')),
            'holds a UNet2DModel; StableDiffusion takes a UNet2DConditionModel.*PixelUNet',
        ),
        (
            dict(unet=dict(in_channels=9)),
            r'not SD 1.x or 2.x \(in_channels=9.*inpainting models are not supported',
        ),
        (dict(unet=dict(addition_embed_type='text_time')), "addition_embed_type='text_time'.*SDXL"),
        (dict(unet=dict(chanels=3)), r"UNet2DConditionModel does not know: \['chanels'\]; allowed"),
        (dict(vae=dict(chanels=3)), r"AutoencoderKL does not know: \['chanels'\]; allowed"),
        (
            dict(prompt='a', class_names=['b']),
            r"give one of prompt='a', tokens=None and class_names=\['b'\]",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            small_sd(**options)
    with pytest.raises(
        ValueError,
        match=r"config lacks \['unet'\]; it has .*and needs \['unet', 'vae', 'scheduler'\]",
    ):
        StableDiffusion(config=small_dit_config)
    with pytest.raises(
        ValueError, match=r"config='sd3' is unknown; allowed: one of \[.*'sd15'.*a folder"
    ):
        StableDiffusion(config='sd3')
    with pytest.raises(
        ValueError, match=r'give pretrained=… \(weights\), or config=… for random weights'
    ):
        StableDiffusion()


def test_the_shipped_architectures_have_the_published_channels():
    """METHODS: ODISE's table of taps, read from the whole SD 1.5 without its weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from mmdiffrep.diffusion.model_files import checked_config

    for name, width, count in (
        ('sd15', 768, 859_520_964),
        ('sd21', 1024, 865_910_724),
        ('sd21-base', 1024, 865_910_724),
    ):
        config = named_config(name)
        assert (
            config['unet']['cross_attention_dim'] == width == config['text_encoder']['hidden_size']
        )
        assert config['scheduler']['prediction_type'] == (
            'v_prediction' if name == 'sd21' else 'epsilon'
        )
        if name == 'sd21-base':  # the same network
            assert config['unet'] | dict(sample_size=96) == named_config('sd21')['unet']
            continue
        with torch.device('meta'):
            unet = UNet2DConditionModel.from_config(
                checked_config(UNet2DConditionModel, config['unet'])
            )
        assert sum(p.numel() for p in unet.parameters()) == count
        resnets = [unet.up_blocks[k].resnets[2].norm1.num_channels for k in range(4)]
        assert resnets == [2560, 1920, 960, 640]
        with torch.device('meta'):
            text = CLIPTextModel(CLIPTextConfig(**config['text_encoder']))
        words = 123_060_480 if name == 'sd15' else 340_387_840
        assert sum(p.numel() for p in text.parameters()) == words

"""Whole diffusion models: what each family is trained on, drawn from, saved as."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)  # fmt: skip

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.dit import DiT
from mmdiffrep.diffusion.generative import GenerativeModel
from mmdiffrep.diffusion.objectives import Objective
from mmdiffrep.diffusion.pixel_unet import PixelUNet
from mmdiffrep.diffusion.sampling import edm_sigmas, sample, samplers
from mmdiffrep.diffusion.schedules import EDMSchedule, build_schedule
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.models.pretrainers import AutoencoderPretrainer, DenoisingPretrainer
from mmdiffrep.models.pretrainers.autoencoder_pretrainer import kl_divergence

UNET = dict(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip
ADM = dict(
    _class_name='ADM', image_size=8, model_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(2,),
    num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True,
)  # fmt: skip
DIT = dict(
    _class_name='DiTTransformer2DModel', num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
    num_layers=2, sample_size=4, patch_size=2, num_embeds_ada_norm=1000,
)  # fmt: skip
PIXEL_DIT = dict(DIT, in_channels=3, out_channels=3, sample_size=8, num_embeds_ada_norm=5)
TEXT_UNET = dict(
    _class_name='UNet2DConditionModel', sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16),
    layers_per_block=1, norm_num_groups=4, attention_head_dim=8, cross_attention_dim=12,
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
)  # fmt: skip
VAE = dict(
    block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=8, scaling_factor=0.5,
    down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2,
)  # fmt: skip


@pytest.fixture(scope='module')
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp('vae')
    torch.manual_seed(0)
    AutoencoderKL(**VAE).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope='module')
def text(sd_folder):
    return str(sd_folder('few words'))


def build(network, **options):
    model = GenerativeModel(network, **options)
    torch.manual_seed(1)
    with torch.no_grad():  # a new DiT's output is zero
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def pictures(pipeline, **options):
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(generator=torch.Generator().manual_seed(3), output_type='np', **options).images
    return torch.from_numpy(np.asarray(found)).permute(0, 3, 1, 2) * 2 - 1


# ---- the same samples as diffusers' pipelines -----------------------------------------------------------------


def test_pixels_are_drawn_as_by_diffusers(tmp_path):
    model = build(UNET)
    model.save(tmp_path / 'saved')
    wanted = pictures(DDPMPipeline.from_pretrained(tmp_path / 'saved'), batch_size=3, num_inference_steps=4)
    again = GenerativeModel.load(tmp_path / 'saved').eval()
    got = sample(again, 3, 4, 'ddpm', generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    wanted = pictures(DDIMPipeline.from_pretrained(tmp_path / 'saved'), batch_size=3, num_inference_steps=4)
    got = sample(again, 3, 4, 'ddim', generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_texts_are_drawn_as_by_diffusers(vae, text, tmp_path):
    model = build(TEXT_UNET, autoencoder=vae, text_encoder=text)
    model.save(tmp_path / 'saved')
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / 'saved', safety_checker=None)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    prompts = ['a red star', 'a blue ring']
    wanted = pictures(pipeline, prompt=prompts, num_inference_steps=4, guidance_scale=3.0, height=8, width=8)
    again = GenerativeModel.load(tmp_path / 'saved').eval()
    got = sample(
        again, 2, 4, 'euler', again.condition(2, prompts=prompts), 3.0, 8, torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    plain = sample(again, 2, 4, 'euler', size=8, generator=torch.Generator().manual_seed(3))
    assert (plain - got).abs().max() > 1e-3  # the text steers
    # half the size on disk, and all parts still load in one precision
    model.save(tmp_path / 'half', torch.float16)
    half = StableDiffusionPipeline.from_pretrained(tmp_path / 'half', safety_checker=None)
    half.scheduler = pipeline.scheduler
    again = pictures(half, prompt=prompts, num_inference_steps=4, guidance_scale=3.0, height=8, width=8)
    torch.testing.assert_close(again, wanted, rtol=0, atol=0.05)
    # the features' denoiser takes the same folder
    again = GenerativeModel.load(tmp_path / 'saved').eval()
    denoiser = StableDiffusion(pretrained=str(tmp_path / 'saved'), prompt='a red star')
    x, t = torch.randn(1, 4, 4, 4), torch.tensor([300])
    with torch.no_grad():
        torch.testing.assert_close(denoiser.run(x, t, None), again(x, t, again.condition(1, prompts=['a red star'])))


@pytest.mark.parametrize('out_channels', [4, 8])
def test_classes_are_drawn_as_by_diffusers(vae, tmp_path, out_channels):
    """With 8 channels a learned variance stands beside the noise, as in the published networks."""
    model = build(dict(DIT, out_channels=out_channels), autoencoder=vae)
    model.save(tmp_path / 'saved')
    pipeline = DiTPipeline.from_pretrained(tmp_path / 'saved')
    # its own draws DDPM's noise without the generator
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    wanted = pictures(pipeline, class_labels=[7, 300], num_inference_steps=4, guidance_scale=2.0)
    again = GenerativeModel.load(tmp_path / 'saved').eval()
    condition = again.condition(2, torch.tensor([7, 300]))
    got = sample(again, 2, 4, 'ddim', condition, 2.0, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    denoiser = DiT(pretrained=str(tmp_path / 'saved'))
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(denoiser.encode(image), again.encode(image))


# ---- every network with every framework ---------------------------------------------------------------------------

NETWORKS = dict(unet=UNET, adm=ADM, classes=UNET, dit=PIXEL_DIT, latent_dit=DIT, text=TEXT_UNET)
SCHEDULES = dict(
    linear=None, cosine_v=dict(beta_schedule='squaredcos_cap_v2', prediction_type='v_prediction'), edm=dict(_class_name='EDMSchedule'),
)  # fmt: skip


@pytest.mark.parametrize('network, schedule', itertools.product(NETWORKS, SCHEDULES))
def test_every_network_trains_and_draws(network, schedule, vae, text):
    options = dict(text=dict(autoencoder=vae, text_encoder=text), latent_dit=dict(autoencoder=vae), classes=dict(num_classes=5))
    torch.manual_seed(0)
    model = DenoisingPretrainer(NETWORKS[network], SCHEDULES[schedule], drop_condition=0.5, **options.get(network, {}))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    data = dict(inputs=torch.rand(4, 3, 8, 8) * 2 - 1)
    if model.model.takes_classes:
        data['label'] = torch.tensor([0, 1, 2, 3])
    if model.model.takes_text:
        data['caption'] = ['a red star', 'a ring', 'grass', '']
    for _ in range(3):
        loss = model(**data, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without, 'DDP would wait for these'
    images = sample(model.model.eval(), 2, 2, size=8, generator=torch.Generator().manual_seed(0))
    assert images.shape == (2, 3, 8, 8) and torch.isfinite(images).all()
    first, again = model(**data, mode='predict'), model(**data, mode='predict')
    assert [x['loss'].item() for x in first] == [x['loss'].item() for x in again]


def test_validation_does_not_depend_on_the_batch():
    model = DenoisingPretrainer(UNET).eval()
    images = torch.randint(0, 256, (4, 3, 8, 8)) / 127.5 - 1
    together = model(images, mode='predict')
    for image, wanted in zip(images, together):
        (alone,) = model(image[None], mode='predict')
        assert alone['t'] == wanted['t']
        torch.testing.assert_close(alone['loss'], wanted['loss'], rtol=1e-4, atol=1e-5)


def test_classes_are_withheld_once_for_the_whole_network(monkeypatch):
    """A DiT of diffusers drops labels in each block; here all blocks see the same ones."""
    model = DenoisingPretrainer(PIXEL_DIT, drop_condition=0.5).train()
    seen = []
    for block in model.model.network.transformer_blocks:
        block.norm1.emb.class_embedder.embedding_table.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].clone())
        )
    torch.manual_seed(0)
    model(torch.zeros(400, 3, 8, 8), torch.full((400,), 2), mode='loss')
    assert len(seen) >= 2 and all(torch.equal(seen[0], other) for other in seen)
    dropped = (seen[0] == 5).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.1) and set(seen[0].tolist()) == {2, 5}


def test_texts_are_withheld(vae, text):
    model = GenerativeModel(TEXT_UNET, autoencoder=vae, text_encoder=text)
    told = model.condition(3, prompts=['a red star'] * 3, drop=torch.tensor([False, True, False])).tokens
    empty, full = model.frozen.text(['', 'a red star'])
    assert torch.equal(told, torch.stack([full, empty, full])) and not torch.equal(empty, full)


def test_autoencoder_and_text_encoder_are_not_trained_copied_or_stored(vae, text):
    import copy

    model = DenoisingPretrainer(TEXT_UNET, autoencoder=vae, text_encoder=text)
    names = list(model.state_dict())
    assert all(name.startswith('model.network.') for name in names)
    assert copy.deepcopy(model).model.frozen is model.model.frozen
    model.double()
    assert next(model.model.frozen.vae.parameters()).dtype == torch.float64


# ---- formulas -------------------------------------------------------------------------------------------------------


def test_edm_by_hand():
    """sigma = 1, sigma_data = 0.5: c_skip = 0.2, c_out = 1/sqrt(5), c_in = 2/sqrt(5), c_noise = 0, lambda = 5."""
    schedule = EDMSchedule()
    c_skip, c_out, c_in, c_noise = (v.item() for v in schedule.preconditioning(torch.ones(1)))
    assert (c_skip, c_out, c_in, c_noise) == pytest.approx((0.2, 0.2**0.5, 2 / 5**0.5, 0.0), abs=1e-6)
    x0, noise = torch.full((1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1), -2.0)
    t = torch.ones(1)
    output = torch.full((1, 1, 1, 1), 0.7)
    x_t = schedule.add_noise(x0, noise, t)
    assert x_t.item() == pytest.approx(-1.7)
    # D = 0.2 · (-1.7) + 0.7 / sqrt(5) = -0.0269505; lambda (D - 0.3)² = 5 · 0.1068966
    loss = Objective(schedule).losses(output, x0, noise, x_t, t)
    assert loss.item() == pytest.approx(5 * (0.2 * -1.7 + 0.7 / 5**0.5 - 0.3) ** 2, rel=1e-5)
    assert loss.item() == pytest.approx(0.534482, rel=1e-4)


def test_edm_zero_and_perfect_network():
    """F = 0 costs (x_0 - c_skip x_t)² / c_out², whose expectation over x_0 ~ N(0, 0.5²) and noise is 1 at every sigma."""
    schedule = EDMSchedule()
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.01, 0.5, 20.0):
        t = torch.full((8,), sigma)
        x0 = 0.5 * torch.randn(8, 3, 64, 64, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        x_t = schedule.add_noise(x0, noise, t)
        objective = Objective(schedule)
        zero = objective.losses(torch.zeros_like(x0), x0, noise, x_t, t)
        assert zero.mean().item() == pytest.approx(1, abs=0.02)
        perfect = objective.losses(schedule.target(x0, noise, t), x0, noise, x_t, t)
        assert perfect.max() == 0
        torch.testing.assert_close(schedule.to_x0(schedule.target(x0, noise, t), x_t, t), x0, rtol=0, atol=1e-4)


@pytest.mark.parametrize('space', ['epsilon', 'sample', 'v_prediction'])
def test_min_snr_is_the_same_weight_in_every_space(space):
    """min(SNR, 5) on x_0's error, in whatever space the error is measured."""
    schedule = build_schedule(dict(prediction_type='epsilon'))
    objective = Objective(schedule, loss_on=space, min_snr_gamma=5.0)
    generator = torch.Generator().manual_seed(0)
    x0, noise, output = torch.randn(3, 4, 3, 8, 8, generator=generator).unbind()
    t = torch.tensor([20, 200, 400, 600])
    x_t = schedule.add_noise(x0, noise, t)
    product = DDPMScheduler().alphas_cumprod.double()[t]
    snr = product / (1 - product)
    error = (schedule.to_x0(output, x_t, t) - x0).double().square().flatten(1).mean(1)
    wanted = torch.minimum(snr, torch.tensor(5.0)) * error
    torch.testing.assert_close(objective.losses(output, x0, noise, x_t, t).double(), wanted, rtol=2e-3, atol=0)


def test_timesteps_drawn_and_spread():
    schedule = build_schedule({})
    torch.manual_seed(0)
    t = Objective(schedule, timestep_power=2).draw_timesteps(40000)
    assert t.min() == 0 and t.max() == 999
    for share in (0.1, 0.25, 0.7):  # P(T u² < share T) = sqrt(share)
        assert (t < share * 1000).float().mean().item() == pytest.approx(share**0.5, abs=0.01)
    edm = Objective(EDMSchedule())
    u = torch.tensor([0.5, 0.8413447])  # the median, and one deviation above
    assert edm.timesteps_at(u).log().tolist() == pytest.approx([-1.2, 0.0], abs=1e-4)
    assert Objective(schedule).timesteps_at(torch.tensor([0.0, 0.5, 0.9999])).tolist() == [0, 500, 999]


def test_heun_solves_a_gaussian():
    """For data N(0, s²), D = s² x / (s² + sigma²), and the ODE ends at x s / sqrt(s² + sigma_max²)."""

    class Gaussian(GenerativeModel):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.network = torch.nn.Linear(1, 1)  # has a device and a dtype
            self.schedule, self.kind = EDMSchedule(sigma_max=10.0), 'UNet2DModel'
            self.num_classes = None
            from mmdiffrep.diffusion.networks import Frozen

            self.frozen = Frozen()

        def sample_shape(self, size=None):
            return 3, 4, 4

        def forward(self, x_t, t, condition=None):
            c_skip, c_out, _, _ = (v.view(-1, 1, 1, 1) for v in self.schedule.preconditioning(t))
            s = 0.09
            return (s / (s + t.view(-1, 1, 1, 1) ** 2) * x_t - c_skip * x_t) / c_out

    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    wanted = (noise * 10 * 0.3 / math.sqrt(0.09 + 100)).clamp(-1, 1)
    errors = []
    for steps in (40, 80):
        got = sample(Gaussian(), 2, steps, generator=torch.Generator().manual_seed(5))
        errors.append((got - wanted).abs().max().item())
    assert errors[1] < 2e-3 and errors[1] < errors[0] / 3.5  # second order: a quarter
    sigmas = edm_sigmas(EDMSchedule(), 18)
    assert sigmas[0] == pytest.approx(80) and sigmas[17] == pytest.approx(0.002) and sigmas[18] == 0
    assert sigmas[13].item() == pytest.approx(((80 ** (1 / 7)) + 13 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)


def test_guidance_by_hand():
    model = build(UNET, num_classes=3)
    condition = model.condition(2, torch.tensor([0, 2]))
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([999, 999])
    seen = sample(model, 2, 1, 'ddim', condition, 2.5, generator=torch.Generator().manual_seed(1))
    scheduler = DDPMScheduler()
    product = scheduler.alphas_cumprod[0]
    # one step of DDIM from its only timestep, 0
    with torch.no_grad():
        told, untold = model(x, t * 0, condition), model(x, t * 0, Condition(class_ids=torch.tensor([3, 3])))
    out = untold + 2.5 * (told - untold)
    wanted = ((x - (1 - product).sqrt() * out) / product.sqrt()).clamp(-1, 1)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-5)


# ---- the autoencoder ------------------------------------------------------------------------------------------------


def test_autoencoder_trains_and_its_scale_is_measured(tmp_path, vae):
    torch.manual_seed(0)
    model = AutoencoderPretrainer(VAE, kl_weight=1e-3, gradient_weight=0.5)
    images = torch.rand(8, 3, 8, 8) * 2 - 1
    losses = model(images, mode='loss')
    assert set(losses) == {'loss_reconstruction', 'loss_kl', 'loss_gradient'}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    for _ in range(5):  # soon, not only after hundreds of steps
        with torch.no_grad():
            model(images, mode='loss')
    model.save_diffusers(tmp_path / 'vae', torch.float16)
    config = json.loads((tmp_path / 'vae' / 'config.json').read_text())
    with torch.no_grad():
        latent = torch.cat([model.vae.encode(images).latent_dist.sample() for _ in range(50)])
    assert config['scaling_factor'] == pytest.approx(1 / latent.square().mean().sqrt().item(), rel=0.05)
    x0 = GenerativeModel(dict(UNET, in_channels=4, out_channels=4), autoencoder=str(tmp_path / 'vae')).encode(images)
    assert x0.shape == (8, 4, 4, 4)


def test_kl_against_torch(vae):
    from torch.distributions import Normal
    from torch.distributions import kl_divergence as theirs

    posterior = AutoencoderKL.from_pretrained(vae).encode(torch.rand(2, 3, 8, 8)).latent_dist
    wanted = theirs(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_divergence(posterior), wanted)


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_errors_by_message(vae, text, tmp_path):
    with pytest.raises(ValueError, match=r"_class_name='UNet3D' cannot be trained; allowed: \['DiTTransformer2DModel'"):
        GenerativeModel(dict(_class_name='UNet3D'))
    with pytest.raises(ValueError, match='the network has 3 channels in and 3 out; allowed: 4 and 4'):
        GenerativeModel(UNET, autoencoder=vae)
    with pytest.raises(ValueError, match='is told a text: give text_encoder='):
        GenerativeModel(TEXT_UNET, autoencoder=vae)
    with pytest.raises(ValueError, match='tokens of 12 channels, the network takes 32: set cross_attention_dim=12'):
        GenerativeModel(dict(TEXT_UNET, cross_attention_dim=32), autoencoder=vae, text_encoder=text)
    with pytest.raises(ValueError, match='num_class_embeds=9 does not fit num_classes=5; allowed: 6'):
        GenerativeModel(dict(UNET, num_class_embeds=9), num_classes=5)
    with pytest.raises(FileNotFoundError, match='has no AutoencoderKL'):
        GenerativeModel(UNET, autoencoder=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'has no unet/config.json or transformer/config.json'):
        GenerativeModel.load(tmp_path)
    with pytest.raises(ValueError, match='belong to DDPMs; EDM has a weight'):
        Objective(EDMSchedule(), min_snr_gamma=5.0)
    with pytest.raises(ValueError, match='timestep_power=0 does not fit'):
        Objective(build_schedule({}), timestep_power=0)
    with pytest.raises(ValueError, match='brings its own parts: leave .*num_classes.* out'):
        DenoisingPretrainer(dict(pretrained='mmdiffrep/toy-unet'), num_classes=3)
    with pytest.raises(ValueError, match='num_class_embeds=9 and no class for "unknown": set num_classes=8 instead'):
        GenerativeModel(dict(UNET, num_class_embeds=9))
    model = GenerativeModel(UNET)
    with pytest.raises(ValueError, match="sampler='pndm' with 3 steps .* allowed: at least 4 steps"):
        sample(model, 1, 3, 'pndm')
    assert sample(model, 1, 4, 'pndm').shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"sampler='heun' does not fit this schedule; allowed: \['ddim'"):
        sample(model, 1, sampler='heun')
    with pytest.raises(ValueError, match='the network is told nothing that could guide it'):
        sample(model, 1, guidance_scale=2.0)
    with pytest.raises(ValueError, match='images of 9×8 cannot be drawn; allowed: multiples of 2'):
        sample(model, 1, size=(9, 8))
    with pytest.raises(ValueError, match='takes no classes: leave class ids out, or train it with num_classes'):
        model.condition(1, torch.tensor([1]))
    with pytest.raises(ValueError, match='takes no text'):
        model.condition(1, prompts=['x'])
    with pytest.raises(ValueError, match='the data has no "label": set labels=True'):
        DenoisingPretrainer(UNET, num_classes=3)(torch.zeros(1, 3, 8, 8), mode='loss')
    with pytest.raises(ValueError, match='the data has no "caption"'):
        DenoisingPretrainer(TEXT_UNET, autoencoder=vae, text_encoder=text)(torch.zeros(1, 3, 8, 8), mode='loss')
    assert samplers(EDMSchedule()) == ['heun']
    with pytest.raises(ValueError, match='a DiT gives square maps only'):
        GenerativeModel(PIXEL_DIT)(torch.zeros(1, 3, 8, 4), torch.tensor([1]))


def test_features_are_read_from_a_class_conditional_folder(tmp_path):
    model = build(UNET, num_classes=4)
    model.save(tmp_path / 'saved')
    assert json.loads((tmp_path / 'saved' / 'mmdiffrep.json').read_text()) == dict(num_classes=4)
    assert GenerativeModel.load(tmp_path / 'saved').null_class == 4
    denoiser = PixelUNet(pretrained=str(tmp_path / 'saved'))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():  # told nothing: the class for "unknown"
        torch.testing.assert_close(denoiser.run(x, t, None), model(x, t, model.condition(2)), rtol=1e-5, atol=1e-5)


def test_features_of_an_edm_network(tmp_path):
    from mmdiffrep.models.backbones import DiffusionBackbone

    model = build(UNET, schedule=dict(_class_name='EDMSchedule'))
    model.save(tmp_path / 'saved')
    assert not (tmp_path / 'saved' / 'model_index.json').exists()  # no pipeline of diffusers draws from it
    backbone = DiffusionBackbone(
        denoiser=dict(type='mmdiffrep.PixelUNet', pretrained=str(tmp_path / 'saved')), taps=['up_blocks.0'], timesteps=0.06,
        noise=dict(kind='none'), image_mean=[0] * 3, image_std=[1] * 3,
    ).eval()  # fmt: skip
    image = torch.randint(0, 256, (2, 3, 8, 8)).float()
    seen = []
    handle = model.network.up_blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        (got,) = backbone(image)
        sigma = torch.full((2,), 0.06)
        model.network((image / 127.5 - 1) / (sigma**2 + 0.25).sqrt().view(-1, 1, 1, 1), sigma.log() / 4)
    handle.remove()
    torch.testing.assert_close(got, seen[0], rtol=1e-4, atol=1e-4)
    again = DenoisingPretrainer(dict(pretrained=str(tmp_path / 'saved')))
    assert isinstance(again.model.schedule, EDMSchedule)


# ---- random numbers and precision -------------------------------------------------------------------------------------


def test_building_leaves_the_accelerators_random_numbers_alone(monkeypatch, vae):
    """torch.manual_seed would seed them: every process of a distributed training would draw the same noise."""
    seeded = []
    for name in ('manual_seed', 'manual_seed_all'):
        monkeypatch.setattr(torch.cuda, name, seeded.append)
    state = torch.get_rng_state()
    first = GenerativeModel(UNET, seed=3).network.state_dict()
    GenerativeModel(dict(UNET, in_channels=4, out_channels=4), autoencoder=vae)
    PixelUNet(config=UNET, random_seed=3)
    assert not seeded and torch.equal(state, torch.get_rng_state())
    torch.manual_seed(3)
    assert seeded  # the test sees it
    from diffusers import UNet2DModel

    plain = UNet2DModel(**UNET).state_dict()  # the same weights as ever
    assert all(torch.equal(first[name], value) for name, value in plain.items())


def test_frozen_parts_keep_their_precision_under_autocast(vae, text):
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    wanted = GenerativeModel(TEXT_UNET, autoencoder=vae, text_encoder=text)
    x0, tokens = wanted.encode(images), wanted.condition(1, prompts=['a red star']).tokens
    model = DenoisingPretrainer(TEXT_UNET, autoencoder=vae, text_encoder=text)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(model.model.encode(images), x0)
        assert torch.equal(model.model.condition(1, prompts=['a red star']).tokens, tokens)
        loss = model(images, caption=['a red star', ''], mode='loss')['loss']
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_min_snr_where_nothing_of_the_image_is_left():
    schedule = build_schedule(dict(prediction_type='epsilon', rescale_betas_zero_snr=True))
    for space in ('epsilon', 'v_prediction', 'sample'):
        weights = Objective(schedule, space, min_snr_gamma=5.0).weights(torch.tensor([0, 500, 999]))
        assert torch.isfinite(weights).all() and weights[2] == (1 if space == 'epsilon' else 0)


def test_the_largest_hash_is_a_timestep_too(monkeypatch):
    import zlib

    model = DenoisingPretrainer(UNET).eval()
    monkeypatch.setattr(zlib, 'crc32', lambda data: 2**32 - 1)
    (found,) = model(torch.zeros(1, 3, 8, 8), mode='predict')
    assert found['t'] == 999

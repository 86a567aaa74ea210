"""The text-conditional network that ships: Stable Diffusion's layout, steered by words."""

import pytest
import torch

from mmdiffrep.datasets.toyscenes import generate_scene
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.generative import GenerativeModel
from mmdiffrep.diffusion.loading import locate, shipped_models
from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.diffusion.sampling import sample
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion

NAME = 'mmdiffrep/toy-sd'
TAPS = ['up_blocks.1.attentions.1', 'up_blocks.2.attentions.1']


@pytest.fixture(scope='module')
def scenes():
    """Of a seed that it was not trained on, RGB in [-1, 1]."""
    pictures = [generate_scene(1000, i, (64, 64), 'val').image for i in range(4)]
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures])


@pytest.fixture(scope='module')
def model():
    assert NAME in shipped_models()
    return GenerativeModel.load(NAME).eval()


def test_its_autoencoder_knows_scenes(scenes, model):
    with torch.no_grad():
        again = model.decode(model.encode(scenes))
    error = (again - scenes).abs().mean()
    mean = (scenes - scenes.mean((2, 3), keepdim=True)).abs().mean()  # each picture's mean colour instead
    assert error < 0.13 and error < 0.5 * mean


@pytest.mark.parametrize(('prompts', 'channel'), [(('a red disc', 'a red star'), 0), (('a blue square', 'a blue star'), 2)])
def test_words_choose_the_colour(model, prompts, channel):
    """The second of each pair's combinations includes one that no training picture showed."""
    condition = model.condition(4, prompts=list(prompts) * 2)
    images = sample(model, 4, 10, condition=condition, guidance_scale=3.0, generator=torch.Generator().manual_seed(0))
    middle = images[:, :, 24:40, 24:40].mean((2, 3))
    assert (middle.argmax(1) == channel).sum() >= 3


def test_diffusers_draws_the_same(model):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(locate(NAME).path, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        ['a purple ring'], num_inference_steps=3, guidance_scale=3.0, height=64, width=64, output_type='pt',
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    from diffusers import PNDMScheduler

    assert not isinstance(pipeline.scheduler, PNDMScheduler)
    name = {'DDIMScheduler': 'ddim', 'DDPMScheduler': 'ddpm'}[type(pipeline.scheduler).__name__]
    condition = model.condition(1, prompts=['a purple ring'])
    got = sample(model, 1, 3, name, condition, 3.0, 64, torch.Generator().manual_seed(1))
    torch.testing.assert_close(got / 2 + 0.5, wanted.float(), rtol=0, atol=2e-3)


def test_words_change_what_it_sees(scenes):
    found = {}
    for prompt in ('', 'a red disc', 'a blue star'):
        denoiser = StableDiffusion(pretrained=NAME, prompt=prompt, keep_taps=TAPS)
        with torch.no_grad():
            maps = FeatureExtractor(denoiser, TAPS, 300, NoisePolicy())(scenes)
        found[prompt] = torch.cat([m.flatten() for m in maps])
    size = found[''].square().mean().sqrt()
    for a, b in (('', 'a red disc'), ('a red disc', 'a blue star')):
        assert (found[a] - found[b]).square().mean().sqrt() > 0.02 * size


def test_it_knows_noise_from_latents(scenes, model):
    """Its error against the velocity, where predicting none costs the velocity's own size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x0 = model.encode(scenes)
        noise, t = torch.randn(x0.shape, generator=generator), torch.full((len(x0),), 500)
        target = model.schedule.target(x0, noise, t)
        got = model(model.schedule.add_noise(x0, noise, t), t, model.condition(len(x0)))
    assert (got - target).square().mean() < 0.7 * target.square().mean()

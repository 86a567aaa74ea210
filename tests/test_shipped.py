"""The networks that ship: they load by their short names, and have learnt what their cards say."""

import pytest
import torch

from mmdiffrep.datasets.toyscenes import generate_scene
from mmdiffrep.diffusion.loading import shipped_models
from mmdiffrep.diffusion.noise import seeded_noise
from mmdiffrep.diffusion.pixel_unet import PixelUNet


@pytest.fixture(scope='module')
def images():
    """Scenes of a seed that it was not trained on, RGB in [-1, 1]."""
    pictures = [generate_scene(1000, i, (64, 64), 'val').image for i in range(6)]
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures])


@pytest.mark.parametrize(('t', 'bound'), [(50, 0.35), (300, 0.06), (700, 0.01)])
def test_toy_unet_predicts_the_noise(images, t, bound):
    assert 'mmdiffrep/toy-unet' in shipped_models()
    denoiser = PixelUNet(pretrained='mmdiffrep/toy-unet')
    noise = torch.stack([seeded_noise(0, i, 0, (3, 64, 64)) for i in range(len(images))])
    times = torch.full((len(images),), t)
    with torch.no_grad():
        x_t = denoiser.schedule.add_noise(images, noise, times)
        error = (denoiser.run(x_t, times, None) - noise).square().mean().item()
    assert error < bound  # predicting nothing costs 1


def test_untrained_twin_differs_and_has_another_fingerprint():
    taps = ['up_blocks.0']
    trained = PixelUNet(pretrained='mmdiffrep/toy-unet', keep_taps=taps)
    untrained = PixelUNet(pretrained='mmdiffrep/toy-unet', random_seed=0, keep_taps=taps)
    assert trained.fingerprint != untrained.fingerprint
    assert trained.network.state_dict().keys() == untrained.network.state_dict().keys()
    assert not torch.equal(trained.unet.conv_in.weight, untrained.unet.conv_in.weight)


@pytest.mark.parametrize(('name', 'side'), [('natural-unet', 64), ('cifar-unet', 32)])
def test_networks_of_natural_images_predict_the_noise(name, side):
    """Of a smooth picture."""
    denoiser = PixelUNet(pretrained=f'mmdiffrep/{name}')
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing='ij')
    image = torch.stack([(3 * x).sin() * y, 0.5 * y - 0.2, (x * x + y * y).clamp(max=1) - 0.5])[None]
    noise, t = seeded_noise(0, 1, 0, (3, side, side))[None], torch.tensor([300])
    with torch.no_grad():
        error = (denoiser.run(denoiser.schedule.add_noise(image, noise, t), t, None) - noise).square().mean().item()
    assert error < 0.06  # predicting nothing costs 1

"""The network that ships: it loads by its short name, and it has learnt to denoise ToyScenes."""

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

"""Small networks that several test files share."""

import copy

import pytest
import torch

TINY = dict(
    sample_size=32, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16, 16),
    down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    norm_num_groups=4, attention_head_dim=4,
)  # fmt: skip


@pytest.fixture
def tiny_config():
    """Arguments of a UNet2DModel with three stages and attention: divisor 4, 8 to 16 channels."""
    return copy.deepcopy(TINY)


@pytest.fixture
def tiny_denoiser(tiny_config):
    """Builds a PixelUNet with random weights; ``config`` entries can be overridden."""
    from mmdiffrep.diffusion.pixel_unet import PixelUNet

    def build(keep_taps=None, random_seed=0, schedule=None, **config):
        return PixelUNet(
            config={**tiny_config, **config}, keep_taps=keep_taps, random_seed=random_seed, schedule=schedule
        )

    return build


@pytest.fixture(scope='session')
def tiny_sd_config():
    """Stable Diffusion 1.5 with few channels: its blocks, taps, strides and divisor (64) are the real one's."""
    from mmdiffrep.diffusion.model_files import named_config

    config = copy.deepcopy(named_config('sd15'))
    few = dict(block_out_channels=[8, 16, 16, 16], norm_num_groups=4)
    config['unet'].update(few, attention_head_dim=2, cross_attention_dim=8)
    config['vae'].update(few, layers_per_block=1)
    return config


@pytest.fixture(scope='session')
def tiny_dit_config():
    """DiT-XL/2 with few channels and four blocks."""
    from mmdiffrep.diffusion.model_files import named_config

    config = copy.deepcopy(named_config('dit-xl-2-256'))
    config['transformer'].update(num_layers=4, num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=10)
    config['vae'].update(block_out_channels=[8, 16, 16, 16], norm_num_groups=4, layers_per_block=1)
    return config


@pytest.fixture(scope='session')
def tiny_folder(tmp_path_factory):
    """A DDPM pipeline's folder: unet/, scheduler/ and model_index.json."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp('weights') / 'tiny-ddpm'
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        unet = UNet2DModel(**copy.deepcopy(TINY))
    scheduler = DDPMScheduler(beta_schedule='squaredcos_cap_v2', prediction_type='v_prediction')
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder

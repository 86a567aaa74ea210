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


# ---- latent diffusion, smaller than its published networks are ------------------------------------------------

SMALL_VAE = dict(
    _class_name='AutoencoderKL', block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
    down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2, scaling_factor=0.18215,
)  # fmt: skip
SMALL_SD = dict(
    unet=dict(
        _class_name='UNet2DConditionModel', sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=1,
        down_block_types=('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'),
        cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
    ),
    vae=SMALL_VAE,
    scheduler=dict(_class_name='DDIMScheduler', beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear'),
)  # fmt: skip
SMALL_DIT = dict(
    transformer=dict(
        _class_name='DiTTransformer2DModel', num_attention_heads=2, attention_head_dim=6, out_channels=8, num_layers=3,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10,
    ),
    vae=SMALL_VAE,
    scheduler=dict(_class_name='DDIMScheduler', beta_schedule='linear'),
)  # fmt: skip
_TRACES = {}


@pytest.fixture(scope='session')
def small_sd_config():
    """A text-conditional U-Net of three levels behind an autoencoder of two: divisor 8."""
    return copy.deepcopy(SMALL_SD)


@pytest.fixture(scope='session')
def small_dit_config():
    """A DiT of three blocks behind an autoencoder of two levels: divisor 4, 11 classes with the null class."""
    return copy.deepcopy(SMALL_DIT)


@pytest.fixture
def small_sd(small_sd_config):
    """Builds a StableDiffusion with random weights; a part's config entries can be overridden by ``unet=dict(…)`` …"""
    from mmdiffrep.diffusion.stable_diffusion import StableDiffusion

    return lambda **options: _small(StableDiffusion, small_sd_config, options)


@pytest.fixture
def small_dit(small_dit_config):
    """The same for a DiT: ``transformer=dict(…)`` …"""
    from mmdiffrep.diffusion.dit import DiT

    return lambda **options: _small(DiT, small_dit_config, options)


def _small(kind, config, options):
    changed = {part: {**entries, **options.pop(part, {})} for part, entries in config.items()}
    return kind(config=changed, **options)


@pytest.fixture(scope='module')
def traces_once():
    """Networks of one structure have one trace; test_contract.py tests the tracing itself."""
    from mmdiffrep.diffusion.denoiser import Denoiser

    original = Denoiser.trace

    def trace(self, size):
        tokens = getattr(self, 'tokens', None)
        key = (str(self.network), size, None if tokens is None else tokens.shape)
        if key not in _TRACES:
            _TRACES[key] = original(self, size)
        return _TRACES[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, 'trace', trace)
        yield

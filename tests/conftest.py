"""Small networks that several test files share."""

import contextlib
import copy
import functools
import importlib.util
from pathlib import Path

import pytest
import torch

TINY = dict(
    sample_size=32, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16, 16),
    down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    norm_num_groups=4, attention_head_dim=4,
)  # fmt: skip


@pytest.fixture(autouse=True, scope='session')
def configs_as_they_are():
    """mmengine lays configs out by yapf at each start and each checkpoint, which takes up to two seconds each time."""
    from mmengine.config import config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, 'FormatCode', lambda text, **style: (text, False))
        yield


@functools.cache
def _pretended():
    spec = importlib.util.spec_from_file_location('pretended_accelerator', Path(__file__).with_name('pretended_accelerator.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def on_accelerator():
    """The accelerator, or a pretended one: mmengine's runner moves its model there, and tensors that were left behind are found."""
    with _accelerator() as device:
        yield device


@pytest.fixture(scope='module')
def all_on_accelerator():
    """The same for all of a file's tests, with what they share."""
    with _accelerator() as device:
        yield device


def _accelerator():
    return contextlib.nullcontext(torch.device('cuda', 0)) if torch.cuda.is_available() else _pretended().accelerator()


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
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
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
_TRACES, _UNUSED = {}, {}


@pytest.fixture(scope='session')
def small_sd_config():
    """A text-conditional U-Net of three levels, the second with attention, behind an autoencoder of two: divisor 8."""
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
    """Networks of one structure have one trace, and the same unused parameters; test_contract.py tests both."""
    from mmdiffrep.diffusion.denoiser import Denoiser

    original, unused = Denoiser.trace, Denoiser.unused_parameters

    def structure(self):
        tokens = getattr(self, 'tokens', None)
        return str(self.network), None if tokens is None else tokens.shape

    def trace(self, size):
        key = (*structure(self), size)
        if key not in _TRACES:
            _TRACES[key] = original(self, size)
        return _TRACES[key]

    def unused_parameters(self, taps):
        key = (*structure(self), *taps)
        if key not in _UNUSED:
            _UNUSED[key] = unused(self, taps)
        return _UNUSED[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Denoiser, 'trace', trace)
        patch.setattr(Denoiser, 'unused_parameters', unused_parameters)
        yield


@pytest.fixture(scope='session')
def clip_vocabulary():
    """CLIP's vocabulary and merges as a tokenizer/ folder has them, from the file that open_clip ships."""
    import gzip
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec('open_clip')
    if spec is None:
        pytest.skip('open_clip, which ships the vocabulary, is not installed')
    file = Path(spec.origin).with_name('bpe_simple_vocab_16e6.txt.gz')
    merges = gzip.decompress(file.read_bytes()).decode().split('\n')[1 : 49152 - 256 - 2 + 1]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in plain] + [chr(256 + k) for k in range(256 - len(plain))]
    words = [*letters, *(c + '</w>' for c in letters), *(m.replace(' ', '') for m in merges)]
    words += ['<|startoftext|>', '<|endoftext|>']
    return {word: k for k, word in enumerate(words)}, merges


@pytest.fixture(scope='session')
def sd_folder(tmp_path_factory, small_sd_config, clip_vocabulary):
    """Folders of StableDiffusionPipelines, built when first asked for: ``sd_folder('sd1')``, ``sd_folder('sd2')``.

    ``'few words'`` is the first with a hundredth of the vocabulary, which is read in no time.
    """
    made = {}

    def folder(kind='sd1'):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp('weights') / kind
            words, merges = clip_vocabulary
            if kind == 'few words':
                merges = merges[:500]
                words = {word: k for k, word in enumerate([*list(words)[: 512 + 500], *list(words)[-2:]])}
            _save_pipeline(made[kind], small_sd_config, (words, merges), kind == 'sd2')
        return made[kind]

    return folder


def _save_pipeline(folder, config, vocabulary, second):
    """As SD 1.5 and SD 2.1 differ: linear projections, heads, v-prediction, the text encoder's activation and padding."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    two = dict(use_linear_projection=True, attention_head_dim=(1, 2, 4)) if second else {}
    words, merges = vocabulary
    text = CLIPTextConfig(
        vocab_size=len(words), bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=1,
        hidden_size=12, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2, projection_dim=12,
        hidden_act='gelu' if second else 'quick_gelu',
    )  # fmt: skip
    padding = dict(pad_token='!') if second else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        pipeline = diffusers.StableDiffusionPipeline(
            unet=diffusers.UNet2DConditionModel.from_config({**config['unet'], **two}),
            vae=diffusers.AutoencoderKL.from_config(config['vae']),
            text_encoder=CLIPTextModel(text),
            tokenizer=CLIPTokenizer(vocab=words, merges=[tuple(m.split()) for m in merges], model_max_length=77, **padding),
            scheduler=diffusers.DDIMScheduler(
                prediction_type='v_prediction' if second else 'epsilon', beta_schedule='scaled_linear'
            ),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder)

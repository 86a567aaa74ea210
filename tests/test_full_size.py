"""Full-size architectures on the meta device: what is kept and what is computed, without their weights."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmdiffrep.diffusion import dit, model_files, pixel_unet, stable_diffusion
from mmdiffrep.diffusion.model_files import known_configs, named_config
from mmdiffrep.diffusion.session import TapSession
from mmdiffrep.utils.comparison.flops import count_flops


@pytest.fixture
def on_meta(monkeypatch):
    """Builds networks as if their weights were still to be read."""
    build = model_files.Part.build
    monkeypatch.setattr(model_files.Part, 'build', lambda self, kind, _seed: build(self, kind, None))


def untouched_flops(network, call, names):
    """FLOPs that torch's counter gives to the named parts of diffusers' own forward."""
    counter = FlopCounterMode(display=False)
    with counter:
        call(network)
    root = type(network).__name__
    counts = counter.get_flop_counts()
    return sum(sum(counts.get(f'{root}.{name}', {}).values()) for name in names)


def features_flops(denoiser, tap, x, t):
    session = TapSession(denoiser.network, [denoiser.tap(tap)])

    def call():
        with denoiser._reading(session):
            denoiser.run(x, t, None)

    flops = count_flops(call)
    assert session.complete
    return flops


@pytest.mark.parametrize('name', ['sd15'])
def test_stable_diffusion_costs_what_its_blocks_cost(name, on_meta):
    from diffusers import UNet2DConditionModel

    denoiser = stable_diffusion.StableDiffusion(config=name, keep_taps=['up_blocks.1'])
    x, t = torch.empty(1, 4, 64, 64, device='meta'), torch.zeros(1, dtype=torch.long, device='meta')
    config = named_config(name)['unet']
    with torch.device('meta'):
        whole = UNet2DConditionModel.from_config(config)
    text = torch.empty(1, 77, config['cross_attention_dim'], device='meta')
    parts = ['conv_in', 'time_embedding', 'down_blocks.0', 'down_blocks.1', 'down_blocks.2', 'down_blocks.3', 'mid_block']
    parts += ['up_blocks.0', 'up_blocks.1']
    needed = untouched_flops(whole, lambda unet: unet(x, t, text), parts)
    assert needed == features_flops(denoiser, 'up_blocks.1', x, t) > 1e11
    # and of the rest, nothing is kept
    assert [len(denoiser.unet.down_blocks), len(denoiser.unet.up_blocks)] == [4, 2]
    behind = ('up_blocks.2', 'up_blocks.3', 'conv_norm_out', 'conv_out', 'vae.decoder', 'vae.post_quant_conv')
    assert not [n for n, _ in denoiser.network.named_parameters() if n.startswith(behind)]


def test_dit_costs_what_its_blocks_cost(on_meta, monkeypatch):
    from diffusers import DiTTransformer2DModel

    denoiser = dit.DiT(config='dit-xl-2-256', keep_taps=['transformer_blocks.13'])
    dit._fill_positions(denoiser.transformer)
    denoiser.transformer.pos_embed.to('meta')
    x, t = torch.empty(1, 4, 32, 32, device='meta'), torch.zeros(1, dtype=torch.long, device='meta')
    with torch.device('meta'):
        whole = DiTTransformer2DModel.from_config(named_config('dit-xl-2-256')['transformer'])
    parts = ['pos_embed', *(f'transformer_blocks.{k}' for k in range(14))]
    labels = torch.zeros(1, dtype=torch.long, device='meta')
    needed = untouched_flops(whole, lambda net: net(x, timestep=t, class_labels=labels), parts)
    assert needed == features_flops(denoiser, 'transformer_blocks.13', x, t) > 1e11
    assert len(denoiser.transformer.transformer_blocks) == 14


def test_adm_costs_what_its_blocks_cost(on_meta):
    from diffusers import UNet2DModel

    denoiser = pixel_unet.PixelUNet(config='adm-256', keep_taps=['adm:out.8'])
    x, t = torch.empty(1, 3, 256, 256, device='meta'), torch.zeros(1, dtype=torch.long, device='meta')
    with torch.device('meta'):
        whole = UNet2DModel.from_config(denoiser.unet.config)
    parts = ['conv_in', 'time_embedding', 'mid_block', *(f'down_blocks.{k}' for k in range(6))]
    parts += [f'up_blocks.{k}' for k in range(3)]  # output blocks 0 to 8
    needed = untouched_flops(whole, lambda net: net(x, t), parts)
    assert needed == features_flops(denoiser, 'adm:out.8', x, t) > 1e11


def test_taps_have_the_papers_sizes(on_meta):
    sd = stable_diffusion.StableDiffusion(config='sd15')
    info = sd.tap_info((512, 512))
    odise = {
        'vae.encoder.down_blocks.2.resnets.1:in': (512, 4), 'vae.encoder.down_blocks.3.resnets.1:in': (512, 8),
        'up_blocks.0.resnets.2:in': (2560, 64), 'up_blocks.1.resnets.2:in': (1920, 32),
        'up_blocks.2.resnets.2:in': (960, 16), 'up_blocks.3.resnets.2:in': (640, 8),
        'vae.decoder.up_blocks.0.resnets.2:in': (512, 8), 'vae.decoder.up_blocks.1.resnets.2:in': (512, 4),
    }  # fmt: skip
    assert {tap: (info[tap].channels, info[tap].stride) for tap in odise} == odise
    assert info['up_blocks.1'].channels == 1280 and info['up_blocks.1'].stride == 16
    assert info['up_blocks.1.attentions.0.transformer_blocks.0.attn2:probs'].channels == 77


def test_shipped_architectures_are_known():
    assert known_configs() == ['adm-256', 'dit-xl-2-256', 'dit-xl-2-512', 'sd15', 'sd21', 'sd21-base']
    with pytest.raises(ValueError, match=r"config='sd16' is unknown; allowed: one of \['adm-256'"):
        stable_diffusion.StableDiffusion(config='sd16')


def test_the_tool_names_what_it_knows(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    tool = Path(__file__).resolve().parents[1] / 'tools/full_size.py'
    run = subprocess.run(
        [sys.executable, str(tool), 'sd16', '--taps', 'mid_block'], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: network 'sd16' is unknown; allowed: ['adm-256', 'dit-xl-2-256'")

"""Scenarios of whole networks: looks of each architecture, ODISE's windows, VPD's attention maps, loading; and DDPM-Seg's classifiers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.diffusion.model_files import named_config
from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.diffusion.speed import Remembered

from . import published
from .case import Case, picture

# the taps of the papers' configs, for an architecture's short name
TAPS = {
    'sd15': ['up_blocks.1'],
    'sd21': ['up_blocks.1'],
    'adm-256': ['adm:out.5', 'adm:out.6', 'adm:out.7', 'adm:out.8'],
    'dit-xl-2-256': ['transformer_blocks.13'],
}
ODISE = [
    'vae.encoder.down_blocks.2.resnets.1:in', 'vae.encoder.down_blocks.3.resnets.1:in', 'up_blocks.0.resnets.2:in', 'up_blocks.1.resnets.2:in',
    'up_blocks.2.resnets.2:in', 'up_blocks.3.resnets.2:in', 'vae.decoder.up_blocks.0.resnets.2:in', 'vae.decoder.up_blocks.1.resnets.2:in',
]  # fmt: skip
CROSS = '{}.transformer_blocks.0.attn2'
VPD_MAPS = ['up_blocks.3.attentions.2', 'up_blocks.2.attentions.1', 'up_blocks.1.attentions.1', 'up_blocks.0.resnets.1']
VPD_CROSS = [CROSS.format(f'up_blocks.{k}.attentions.{i}') for k in (1, 2) for i in range(3)]


def _taps(s: SimpleNamespace, usual: list[str] | None = None) -> list[str]:
    """What a named architecture is read at; else ``s.tap``, separated by commas."""
    if not isinstance(s.model, str):
        return s.tap.split(',')
    return usual or TAPS.get(s.model) or s.tap.split(',')


def kind(model: Any) -> str:
    """The denoiser of an architecture: a short name, or dict(unet=…), dict(transformer=…), a U-Net's arguments."""
    if isinstance(model, str):
        return 'StableDiffusion' if model.startswith('sd') else 'DiT' if model.startswith('dit') else 'PixelUNet'
    return 'StableDiffusion' if 'unet' in model else 'DiT' if 'transformer' in model else 'PixelUNet'


def network(s: SimpleNamespace, kept: list[str] | None, ours: bool) -> Denoiser:
    """The architecture ``s.model`` with random weights, the same whether it is cut or not."""
    import mmdiffrep  # noqa: F401
    from mmdiffrep.registry import MODELS

    net = MODELS.build(dict(type=f'mmdiffrep.{kind(s.model)}', config=s.model, random_seed=0, keep_taps=kept))
    if not ours:
        untouched(net)
    return net.to(s.device, memory_format=torch.channels_last if ours else torch.preserve_format).eval()


def untouched(net: Denoiser) -> None:
    """Take off what this project lays over diffusers' modules: a layer that remembers its last answer."""
    for module in net.network.modules():
        if isinstance(vars(module).get('forward'), Remembered):
            del module.forward


def backbone(s: SimpleNamespace, taps: list[str], ours: bool = True, **more: Any) -> Any:
    denoiser = dict(type=f'mmdiffrep.{kind(s.model)}', config=s.model, random_seed=0)
    return _built(s, denoiser, taps, **{'channels_last': ours, **more})


def _built(s: SimpleNamespace, denoiser: dict[str, Any], taps: list[str], **more: Any) -> Any:
    import mmdiffrep  # noqa: F401
    from mmdiffrep.registry import MODELS

    settings = dict(timesteps=s.timestep, image_mean=[127.5] * 3, image_std=[127.5] * 3) | more
    return MODELS.build(dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=taps, **settings)).to(s.device).eval()


def extraction(name: str, s: SimpleNamespace) -> Case:
    """Features of a batch of images at the papers' taps, each one look: cut behind the last, or the whole network with hooks."""
    taps = _taps(s)
    images = picture(s.size, s.device).expand(s.batch, -1, -1, -1).contiguous()
    if name == 'ours':
        net = backbone(s, taps)
        return Case(lambda: dict(zip(taps, net(images))), images=s.batch)
    net = network(s, None, ours=False)
    return Case(lambda: published_look(net, s, images, taps), images=s.batch)


def published_look(net: Any, s: SimpleNamespace, images: Tensor, taps: list[str]) -> dict[str, Tensor]:
    """Activations at taps of images (B, 3, H, W) in [-1, 1], by the whole of a network with hooks."""
    x0 = images
    if kind(s.model) != 'PixelUNet':
        x0 = net.network.vae.encode(images).latent_dist.mean * net.network.vae.config.scaling_factor
    t = torch.full((len(images),), s.timestep, device=x0.device)
    x_t = net.schedule.add_noise(x0, NoisePolicy('shared', 0, 1).draw(tuple(x0.shape)).to(x0), t)
    paths = {tap: str(net.tap(tap)) for tap in taps}
    found = published.tapped(net.network, list(paths.values()), lambda: _whole(net, kind(s.model), x_t, t))
    return {tap: published.as_map(found[path], x_t) for tap, path in paths.items()}


def _whole(net: Any, family: str, x_t: Tensor, t: Tensor) -> Any:
    """diffusers' own forward, to its end."""
    if family == 'DiT':
        ids = torch.full((len(x_t),), net.null_class, device=x_t.device)
        return net.transformer(x_t, timestep=t, class_labels=ids)
    if family == 'StableDiffusion':
        return net.unet(x_t, t, encoder_hidden_states=net.tokens.expand(len(x_t), -1, -1))
    return net.unet(x_t, t)


def loading(name: str, s: SimpleNamespace) -> Case:
    """Build Stable Diffusion, read its weights from a folder in diffusers' layout, and look once at a small image: cut, or the whole of it."""
    taps, folder = _taps(s), saved_model(s)
    image = picture(64, s.device)

    def ours() -> dict[str, Tensor]:
        denoiser = dict(type='mmdiffrep.StableDiffusion', pretrained=str(folder), tokens=str(folder / 'tokens.npy'))
        return dict(zip(taps, _built(s, denoiser, taps)(image)))

    def plain() -> dict[str, Tensor]:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(folder / 'unet').to(s.device).eval()
        vae = AutoencoderKL.from_pretrained(folder / 'vae').to(s.device).eval()
        x0 = vae.encode(image).latent_dist.mean * vae.config.scaling_factor
        t = torch.full((1,), s.timestep, device=x0.device)
        x_t = DDIMScheduler.from_pretrained(folder / 'scheduler').add_noise(x0, NoisePolicy('shared', 0, 1).draw(tuple(x0.shape)).to(x0), t)
        tokens = torch.from_numpy(np.load(folder / 'tokens.npy'))[None].to(x0)
        return published.tapped(unet, taps, lambda: unet(x_t, t, encoder_hidden_states=tokens))

    return Case(ours if name == 'ours' else plain, counts_flops=False)


def saved_model(s: SimpleNamespace) -> Path:
    """A folder of ``s.shared`` with random weights of the architecture ``s.model``, as diffusers saves them; made where it is not there."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    folder = Path(s.shared, 'model')
    if not (folder / 'tokens.npy').is_file():  # written last
        config = named_config(s.model) if isinstance(s.model, str) else s.model
        torch.manual_seed(0)
        for part, kind in dict(unet=UNet2DConditionModel, vae=AutoencoderKL, scheduler=DDIMScheduler).items():
            kind.from_config(config[part]).save_pretrained(folder / part)
        np.save(folder / 'tokens.npy', torch.randn(77, config['unet']['cross_attention_dim']).numpy())
    return folder


SWITCHES: dict[str, dict[str, Any]] = {
    'ours': {},
    'no channels_last': dict(channels_last=False),
    'fuse_qkv': dict(fuse_qkv=True),
    'compile': dict(compile=True),
    'bf16': dict(dtype='bf16'),
    'int8': dict(quantise='int8'),
}


def switches(name: str, s: SimpleNamespace) -> Case:
    """Features of a batch of images at the papers' taps, with one switch of DiffusionBackbone changed."""
    images = picture(s.size, s.device).expand(s.batch, -1, -1, -1).contiguous()
    net, taps = backbone(s, _taps(s), **SWITCHES[name]), _taps(s)
    if name == 'compile':  # what is timed is compiled code
        with torch.inference_mode():
            net(images)
    return Case(lambda: dict(zip(taps, net(images))), images=s.batch, counts_flops=name != 'compile')


def windows(name: str, s: SimpleNamespace) -> Case:
    """ODISE's features of an image, four windows of half its side: all at once, or one by one with the whole autoencoder, U-Net and text encoder."""
    half, taps = s.size // 2, _taps(s, ODISE)
    image = picture(s.size, s.device)
    if name == 'ours':
        net = backbone(s, taps, timesteps=0, noise=dict(kind='shared', seed=0), windows=dict(size=half, batch=4))
        return Case(lambda: dict(zip(taps, net(image))))
    net = network(s, None, ours=False)
    text = published.text_tower(net.unet.config.cross_attention_dim).to(s.device)

    def call() -> dict[str, Tensor]:
        parts = [
            published.odise_window(net, text, image[..., y : y + half, x : x + half], taps)
            for y in (0, half)
            for x in (0, half)
        ]
        return {
            tap: torch.cat([torch.cat([parts[0][tap], parts[1][tap]], -1), torch.cat([parts[2][tap], parts[3][tap]], -1)], -2)
            for tap in taps
        }

    return Case(call)


def vpd(name: str, s: SimpleNamespace) -> Case:
    """VPD's maps and cross-attention probabilities: computed beside fused attention, or with every attention's probabilities materialised."""
    taps = [*VPD_MAPS, *(f'{path}:probs' for path in VPD_CROSS)]
    image = picture(s.size, s.device)
    if name == 'ours':
        net = backbone(s, taps, timesteps=1, noise=dict(kind='none'))
        return Case(lambda: dict(zip(taps, net(image))))
    net = network(s, None, ours=False)

    def call() -> dict[str, Tensor]:
        x0 = net.unet.vae.encode(image).latent_dist.mean * net.unet.vae.config.scaling_factor
        t = torch.ones(1, dtype=torch.long, device=x0.device)
        maps, probs = published.vpd(net.unet, x0, t, net.tokens, VPD_MAPS, VPD_CROSS)
        return {tap: maps.get(tap, probs.get(tap.split(':')[0])) for tap in taps}

    return Case(call)


def ensemble(name: str, s: SimpleNamespace) -> Case:
    """A training step of DDPM-Seg's ten classifiers on 64 pixels of 8448 features: one batched product a layer, or ten networks in a loop."""
    from mmdiffrep.models.ensemble.batched_mlp import MLPEnsemble

    members, pixels, widths, classes = 10, 64, [128, 32], 7
    g = torch.Generator().manual_seed(0)
    features = torch.randn(members, pixels, 8448, generator=g).to(s.device)
    labels = torch.randint(classes, (members, pixels), generator=g).to(s.device)
    joint = MLPEnsemble([8448], widths, classes, members).to(s.device).train()
    if name == 'ours':
        optimizer = torch.optim.Adam(joint.parameters(), lr=1e-3)

        def call() -> dict[str, Tensor]:
            logits = joint(features)
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction='none').view(members, pixels).mean(1)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            return dict(losses=losses.detach())

        return Case(call, images=1)
    alone = [published.ddpm_seg_classifier(8448, classes).to(s.device).train() for _ in range(members)]
    weights = [joint.first[0], *joint.weights]
    with torch.no_grad():
        for m, model in enumerate(alone):
            for layer, weight in zip([layer for layer in model if isinstance(layer, nn.Linear)], weights):
                layer.weight.copy_(weight[m].t())
                layer.bias.zero_()
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3) for model in alone]

    def loop() -> dict[str, Tensor]:
        losses = []
        for m, (model, optimizer) in enumerate(zip(alone, optimizers)):
            loss = nn.functional.cross_entropy(model(features[m]), labels[m])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return dict(losses=torch.stack(losses))

    return Case(loop, images=1)

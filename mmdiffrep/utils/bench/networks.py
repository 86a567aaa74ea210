"""Scenarios of whole networks: extraction from each architecture, ODISE's windows, VPD's attention maps, a training step behind a frozen network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mmdiffrep.diffusion.denoiser import Denoiser

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
    return net.to(s.device, memory_format=torch.channels_last if ours else torch.preserve_format).eval()


def backbone(s: SimpleNamespace, taps: list[str], ours: bool = True, **more: Any) -> Any:
    import mmdiffrep  # noqa: F401
    from mmdiffrep.registry import MODELS

    denoiser = dict(type=f'mmdiffrep.{kind(s.model)}', config=s.model, random_seed=0)
    settings = dict(timesteps=s.timestep, image_mean=[127.5] * 3, image_std=[127.5] * 3, channels_last=ours) | more
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
    from mmdiffrep.diffusion.noise import NoisePolicy

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


def training_step(name: str, s: SimpleNamespace) -> Case:
    """A training step of a segmentation head (3×3 convolutions, cross-entropy) on a frozen network's features; two stock nets for scale."""
    images = picture(s.size, s.device).expand(s.batch, -1, -1, -1).contiguous()
    labels = torch.arange(s.size * s.size, device=s.device).view(1, s.size, s.size).expand(s.batch, -1, -1) % 7
    taps = _taps(s)
    if name == 'ours':
        net = backbone(s, taps)
        channels = net.out_channels[0]
    elif name == 'published':
        whole = network(s, None, ours=False)
        net = lambda x: list(published_look(whole, s, x, taps).values())  # noqa: E731
        with torch.no_grad():
            channels = net(images[:1])[0].shape[1]
    else:
        import timm

        more = dict(img_size=s.size) if name.startswith('swin') else {}
        stock = timm.create_model(name, pretrained=False, features_only=True, **more).to(s.device).train()
        net = lambda x: [stock(x)[-1].permute(0, 3, 1, 2) if name.startswith('swin') else stock(x)[-1]]  # noqa: E731
        channels = stock.feature_info.channels()[-1]
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(channels, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 7, 1)).to(s.device)
    learnt = [*head.parameters(), *(stock.parameters() if name not in ('ours', 'published') else [])]
    optimizer = torch.optim.SGD(learnt, lr=1e-3)

    def call() -> dict[str, Tensor]:
        logits = nn.functional.interpolate(head(net(images)[0]), labels.shape[-2:], mode='bilinear')
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return dict(loss=loss.detach()[None])

    return Case(call, images=s.batch)


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

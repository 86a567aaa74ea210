"""What is timed: tasks, each with several implementations. A case is one implementation, built and ready to be called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.diffusion.pixel_sampling import sample_pixels
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.matching import match_points

from . import heads, networks, published
from .case import Case, picture


@dataclass(frozen=True)
class Scenario:
    """A task.

    Attributes:
        about: one line for the table.
        make: (implementation, settings) -> its :class:`Case`.
        implementations: the first is this project's, the second what it replaces; others are there for scale.
        same: whether the first two give the same answers.
        wanted: how many times as fast the first is meant to be.
        learns: whether it takes gradients.
        model, size, batch: the architecture, the images' side and how many, where none is asked for.
        usual: whether it is run where no scenario is named.
    """

    about: str
    make: Callable[[str, SimpleNamespace], Case]
    implementations: tuple[str, ...] = ('ours', 'published')
    same: bool = True
    wanted: float | None = None
    learns: bool = False
    model: str = 'sd21'
    size: int = 256
    batch: int = 1
    usual: bool = True


def stable_diffusion(s: SimpleNamespace, kept: list[str] | None) -> StableDiffusion:
    """The architecture ``s.model`` with random weights, the same whether it is cut or not."""
    net = StableDiffusion(config=s.model, random_seed=0, latent='sample', keep_taps=kept)
    # ours with the switch that DiffusionBackbone calls channels_last
    layout = torch.channels_last if kept is not None else torch.preserve_format
    if kept is None:
        networks.untouched(net)
    return net.to(s.device, memory_format=layout).eval()


def features_of(name: str, s: SimpleNamespace) -> Callable[[Tensor], Tensor]:
    """DIFT's features of an image (1, 3, H, W): (C, h, w), by this project's way or the published one."""
    ours = name == 'ours'
    net = stable_diffusion(s, [s.tap] if ours else None)
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 77, net.unet.config.cross_attention_dim, generator=g).to(s.device)
    if ours:
        extractor = FeatureExtractor(net, [s.tap], s.timestep, NoisePolicy('shared', 0, s.draws), s.looks)
        return lambda image: extractor(image, Condition(tokens=tokens))[0][0]
    net.vae.decoder = None  # as DIFT's code does
    return lambda image: published.dift_features(net.unet, net.vae, net.schedule, image, tokens, s.tap, s.timestep, s.draws)


def correspondence(name: str, s: SimpleNamespace) -> Case:
    image = picture(s.size, s.device)
    if name in ('resnet50', 'swin_tiny_patch4_window7_224'):
        import timm

        more = dict(img_size=s.size) if name.startswith('swin') else {}
        stock = timm.create_model(name, pretrained=False, features_only=True, **more).to(s.device).eval()
        return Case(lambda: dict(last=stock(image)[-1]))
    look = features_of(name, s)
    return Case(lambda: dict(features=look(image)))


def pair(name: str, s: SimpleNamespace) -> Case:
    images = [picture(s.size, s.device), picture(s.size, s.device).flip(-1)]
    look, points, size = features_of(name, s), _points(s), (s.size, s.size)

    def call() -> dict[str, Tensor]:
        a, b = (look(image) for image in images)
        if name == 'ours':
            found = match_points(a, b, points, size, size)
            return dict(places=found.points.float(), scores=found.scores.float())
        places, scores = published.dift_match(a, b, points, size)
        return dict(places=places.float(), scores=scores)

    return Case(call, images=2)


def matching(name: str, s: SimpleNamespace) -> Case:
    """After the features: maps of 1280 channels at an eighth of the size are drawn."""
    g = torch.Generator().manual_seed(0)
    side = max(1, s.size // 8)
    a, b = (torch.randn(1280, side, side, generator=g).to(s.device) for _ in range(2))
    points, size = _points(s), (s.size, s.size)

    def call() -> dict[str, Tensor]:
        if name == 'ours':
            found = match_points(a, b, points, size, size)
            return dict(places=found.points.float(), scores=found.scores.float())
        places, scores = published.dift_match(a, b, points, size)
        return dict(places=places.float(), scores=scores)

    return Case(call, images=2, counts_flops=False)


def pixels(name: str, s: SimpleNamespace) -> Case:
    """DDPM-Seg's features of 640 pixels of an image: the paper's blocks, 8448 channels in all at its 256²."""
    g = torch.Generator().manual_seed(0)
    shapes = [(1024, 8), (512, 8), (512, 4), (512, 4), (256, 2)] * 3  # channels, stride
    maps = [torch.randn(c, max(1, s.size // t), max(1, s.size // t), generator=g).half() for c, t in shapes]
    y, x = torch.randint(s.size, (2, 640), generator=g)
    size = (s.size, s.size)
    if name == 'ours':
        laid = [m.permute(1, 2, 0).contiguous() for m in maps]
        return Case(lambda: dict(features=sample_pixels(laid, y, x, size)), counts_flops=False)
    return Case(lambda: dict(features=published.ddpm_seg_pixels(maps, y, x, size)), counts_flops=False)


def head(name: str, s: SimpleNamespace) -> Case:
    """A training step of a classifier's head on a frozen Stable Diffusion: kept features (from the second epoch on), or looked at each time."""
    import mmdiffrep  # noqa: F401
    from mmdiffrep.registry import MODELS
    from mmdiffrep.structures import ClassSample

    backbone = dict(
        type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.StableDiffusion', config=s.model, random_seed=0), taps=[s.tap],
        timesteps=s.timestep, image_mean=[0.0] * 3, image_std=[1.0] * 3,
    )  # fmt: skip
    if name == 'ours':
        backbone = dict(type='mmdiffrep.CachedBackbone', backbone=backbone, dtype='fp32')
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='mmdiffrep.DiffusionClassifier', backbone=backbone, data_preprocessor=dict(type='mmengine.ImgDataPreprocessor'),
            head=dict(type='mmdiffrep.ConvHead', num_classes=10, channels=[256]),
        )
    ).to(s.device).train()  # fmt: skip
    image = (picture(s.size, 'cpu')[0] * 127.5 + 127.5).round().byte()
    sample = ClassSample()
    sample.gt_label = torch.tensor(3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def call() -> dict[str, Tensor]:
        data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), True)
        loss = sum(value.sum() for key, value in model(**data, mode='loss').items() if 'loss' in key)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return dict(loss=loss.detach()[None])

    if name == 'ours':
        with torch.no_grad():  # the first epoch
            model.backbone(model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), True)['inputs'])
    return Case(call)


def start_up(name: str, s: SimpleNamespace) -> Case:
    """``import mmdiffrep`` on top of torch and mmengine, in a new interpreter."""
    code = 'import time, torch, mmengine; t = time.perf_counter(); {}; print(time.perf_counter() - t)'

    def call() -> dict[str, Tensor]:
        statement = 'import mmdiffrep' if name == 'ours' else 'import mmengine'
        done = subprocess.run([sys.executable, '-c', code.format(statement)], capture_output=True, text=True, check=True)
        return dict(seconds=torch.tensor([float(done.stdout.split()[-1])]))

    return Case(call, counts_flops=False)


def _points(s: SimpleNamespace) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return (torch.rand(s.points, 2, generator=g) * (s.size - 1)).round()


STOCK = ('resnet50', 'swin_tiny_patch4_window7_224')
LOOK = "a look at an image, the papers' taps"
SCENARIOS: dict[str, Scenario] = {
    'correspondence': Scenario("DIFT's features of an image", correspondence, ('ours', 'published', *STOCK), wanted=3.5),
    'pair': Scenario('a pair of images: features of both, points found', pair, size=128),
    'matching': Scenario('points found, after the features', matching, wanted=10.0),
    'pixels': Scenario("DDPM-Seg's features of 640 pixels", pixels),
    'head': Scenario('a training step of a head behind a frozen network, from the second epoch on', head, ('ours', 'looking each time'), wanted=20.0, learns=True),
    'look-sd15': Scenario(LOOK, networks.extraction, model='sd15'),
    'look-sd15-512': Scenario(LOOK, networks.extraction, model='sd15', size=512),
    'look-sd15-batch': Scenario(f'{LOOK}, four at once', networks.extraction, model='sd15', size=128, batch=4),
    'look-sd21': Scenario(LOOK, networks.extraction, model='sd21'),
    'look-adm': Scenario(LOOK, networks.extraction, model='adm-256'),
    'look-dit': Scenario(LOOK, networks.extraction, model='dit-xl-2-256'),
    'windows': Scenario("ODISE's features of an image in four windows", networks.windows, wanted=2.0, model='sd15', size=512),
    'vpd': Scenario("VPD's maps and cross-attention probabilities", networks.vpd, model='sd15'),
    'mmseg': Scenario("a training step of mmseg's FPN, the frozen network looks each time", heads.mmseg_head, ('ours', 'published', *STOCK), learns=True, model='sd15'),
    'odise': Scenario("a training step of ODISE's captioner and mask generator, four windows", heads.odise_head, learns=True, model='sd15'),
    'ensemble': Scenario("a training step of DDPM-Seg's ten classifiers, 8448 features", networks.ensemble, learns=True),
    'startup': Scenario('import mmdiffrep after torch and mmengine', start_up, ('ours', 'nothing'), same=False),
    'loading': Scenario('building a network and reading its weights from a file, and a first look', networks.loading, model='sd15'),
    'switches': Scenario('a look with one switch changed (--stock: more of them)', networks.switches, tuple(networks.SWITCHES), model='sd15', usual=False),
}

"""Training steps of the toolkits' own models on a frozen diffusion network: mmseg's FPN, ODISE's mask generator of mmdet."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.utils import cli
from mmdiffrep.utils.comparison.images import drawn_batch, drawn_targets
from mmdiffrep.utils.comparison.random_weights import with_random_weights

from . import published
from .case import Case
from .networks import untouched

FPN = 'fpn/diffusion_sd15_fpn_1xb8-20k_camvid-320x320.py'
ODISE = 'odise/odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py'
WHOLE = ['conv_out', 'vae.decoder.conv_out']  # nothing is left out in front of these


class PlainLooks:
    """In the place of a :class:`FeatureExtractor`: untouched networks run to their end, image by image.

    Args:
        extractor: whose network, taps, timestep and noise are used.
        text: a text encoder that is asked at each look, as ODISE does.
        decode: run the autoencoder's decoder, too.
    """

    def __init__(self, extractor: FeatureExtractor, text: nn.Module | None = None, decode: bool = False) -> None:
        self.denoiser, self.noise, self.text, self.decode = extractor.denoiser, extractor.noise, text, decode
        self.taps, self.timesteps, self.order = extractor.taps, extractor.timesteps, extractor.order
        self.infos, self.moving = extractor.infos, extractor.moving
        untouched(self.denoiser)

    def __call__(self, rgb: Tensor, condition: Condition | None = None, keys: Sequence[int] | None = None) -> list[Tensor]:
        condition = condition or Condition()
        parts = []
        for row in range(len(rgb)):
            told = condition.rows(slice(row, row + 1))
            parts.append(
                published.odise_window(
                    self.denoiser, self.text, rgb[row : row + 1], self.taps, self.timesteps[0], self.noise, told.tokens, told.time_bias, self.decode
                )
            )
        return [torch.cat([part[tap] for part in parts]) for tap in self.taps]


def config_of(name: str) -> Any:
    """One of this project's configs, in a checkout or an installed package. FileNotFoundError without them."""
    found = [path for path in cli.known_configs() if path.as_posix().endswith(name)]
    if not found:
        raise FileNotFoundError(f'configs/{name} is not there: run the benchmark in a checkout of the project')
    return Config.fromfile(found[0])


def frozen_backbone(config: Any, s: SimpleNamespace, ours: bool, decode: bool) -> dict[str, Any]:
    """A config's DiffusionBackbone with random weights; for the published way nothing is cut."""
    networks = {part: value for part, value in s.model.items() if part != 'clip'} if isinstance(s.model, dict) else s.model
    denoiser = dict(type='mmdiffrep.StableDiffusion', config=networks, random_seed=0)
    kept = [] if ours else WHOLE[: 1 + decode]
    return dict(config, denoiser=denoiser, dtype='fp32', channels_last=ours, keep_taps=kept)


def mmseg_head(name: str, s: SimpleNamespace) -> Case:
    """A training step of configs/fpn's segmentor: FPN and head on four maps of a frozen Stable Diffusion, or on a stock network that is trained, too."""
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS

    init_default_scope('mmseg')
    model = config_of(FPN).model
    if name in ('ours', 'published'):
        model.backbone = frozen_backbone(model.backbone, s, name == 'ours', decode=False)
    else:
        more = dict(model_args=dict(img_size=s.size)) if name.startswith('swin') else {}
        model.backbone = dict(type='mmdiffrep.TimmBackbone', model=name, out_indices=(-4, -3, -2, -1), **more)
        model.neck.in_channels = MODELS.build(model.backbone).out_channels
    model.data_preprocessor.size = (s.size, s.size)
    torch.manual_seed(0)
    segmentor: Any = MODELS.build(model).to(s.device).train()
    if name == 'published':
        segmentor.backbone.extractor = PlainLooks(segmentor.backbone.extractor)
    classes = segmentor.decode_head.num_classes

    def batch() -> Any:
        data = drawn_batch('mmseg', (s.size, s.size), s.batch)
        for sample in data['data_samples']:
            labels = torch.arange(s.size * s.size).view(1, s.size, s.size) // 97 % classes
            sample.gt_sem_seg = PixelData(data=labels)
        return data

    return _steps(segmentor, batch, s)


def odise_head(name: str, s: SimpleNamespace) -> Case:
    """A training step of configs/odise's segmentor: captioner, mask generator and names, in four windows of half the image's side.

    Its gradients go through the frozen U-Net to the captioner. The published way looks at windows one by one, asks the text encoder at each, and runs the
    autoencoder and the U-Net to their ends.
    """
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # a line for each parameter otherwise
    ours, config = name == 'ours', config_of(ODISE).model
    if isinstance(s.model, dict):  # in a test
        config.backbone.conditioner.clip.name = config.text.encoder.name = s.model['clip']
        config.train_cfg.num_points = 64
    config.clip = None  # it looks at masks in predictions alone
    for augment in config.data_preprocessor.batch_augments:
        augment.size = (s.size, s.size)
    config.backbone = frozen_backbone(config.backbone, s, ours, decode=True)
    config.backbone.windows = dict(size=s.size // 2, batch=4 if ours else 1)
    torch.manual_seed(0)
    model: Any = MODELS.build(with_random_weights(config)).to(s.device).train()
    if not ours:
        extractor = model.backbone.extractor
        text = published.text_tower(extractor.denoiser.unet.config.cross_attention_dim).to(s.device)
        model.backbone.extractor = PlainLooks(extractor, text, decode=True)
    vocabulary = model.naming.trained

    def batch() -> Any:
        data = drawn_batch('mmdet', (s.size, s.size), s.batch)
        drawn_targets(data['data_samples'], s.size, sum(vocabulary.is_thing), len(vocabulary))
        return data

    return _steps(model, batch, s)


def _steps(model: Any, batch: Any, s: SimpleNamespace) -> Case:
    """Training steps of a toolkit's model: the loss, and the size of the gradients, which say whether both ways learn the same."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4)

    def call() -> dict[str, Tensor]:
        torch.manual_seed(0)  # the points at which masks are compared are drawn
        losses = model(**model.data_preprocessor(batch(), True), mode='loss')
        loss = model.parse_losses(losses)[0]
        optimizer.zero_grad()
        loss.backward()
        size = torch.nn.utils.get_total_norm([p.grad for p in learnt if p.grad is not None])
        optimizer.step()
        return dict(loss=loss.detach()[None], gradient=size.detach()[None])

    return Case(call, images=s.batch)

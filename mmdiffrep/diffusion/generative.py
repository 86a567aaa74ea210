"""GenerativeModel: a whole diffusion model, to train, to draw from and to save; its features are read through a Denoiser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .condition import Condition
from .loading import locate, read_json
from .model_files import checked_config, folder_part
from .networks import KINDS, Frozen, build_network, load_autoencoder, network_class
from .pixel_unet import DEFAULT_SCHEDULE, META
from .schedules import NoiseSchedule, build_schedule
from .text import TextEncoder


class GenerativeModel(nn.Module):
    """A network, its schedule, and, frozen, the autoencoder and text encoder that it works with.

    Args:
        network: ``dict(_class_name=…, …)``: arguments of diffusers' ``UNet2DModel`` (the default), ``UNet2DConditionModel`` or
            ``DiTTransformer2DModel``; ``_class_name='ADM'`` takes guided-diffusion's (``model_channels``, ``num_res_blocks``,
            ``attention_resolutions``, ``use_scale_shift_norm`` …).
        schedule: a diffusers scheduler config, or ``dict(_class_name='EDMSchedule', …)``; default: DDPM's linear one, predicting noise.
        autoencoder: folder or short name of an ``AutoencoderKL`` (or of a pipeline that has one): the network works in its latents.
        text_encoder: folder or short name of a pipeline whose ``text_encoder/`` and ``tokenizer/`` embed prompts.
        num_classes: condition on classes; one more embedding stands for "unknown".
        seed: of the network's random weights.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        schedule: Mapping[str, Any] | None = None,
        autoencoder: str | None = None,
        text_encoder: str | None = None,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        kind, self.network = build_network(network, num_classes, seed)
        vae = None if autoencoder is None else load_autoencoder(autoencoder)
        text = None if text_encoder is None else TextEncoder.from_source(text_encoder)
        given = dict(schedule or DEFAULT_SCHEDULE)
        if vae is not None and given.get('_class_name') != 'EDMSchedule':
            given.setdefault('clip_sample', False)  # latents are not bounded by 1
            if kind == 'UNet2DConditionModel':
                given.setdefault('steps_offset', 1)  # StableDiffusionPipeline insists
        self._finish(kind, build_schedule(given), Frozen(vae, text), dict(num_classes=num_classes))

    @classmethod
    def load(cls, pretrained: str | Path) -> GenerativeModel:
        """From a short name, a hub id, or a folder as :meth:`save` and diffusers' pipelines write it.

        Raises:
            FileNotFoundError, ValueError: nothing there, or no network in it that can be drawn from.
        """
        source = locate(pretrained)
        folder = source.folder('unet', 'transformer', '') if source.path.is_dir() else None
        if folder is None:
            raise FileNotFoundError(
                f'{str(pretrained)!r}: {source.path} has no unet/config.json or transformer/config.json. Give a folder as '
                "diffusers' save_pretrained writes it"
            )
        config = read_json(folder / 'config.json')
        kind = config.get('_class_name', 'UNet2DModel')
        if kind not in KINDS:
            raise ValueError(f'{str(pretrained)!r} holds a {kind}; allowed: {sorted(KINDS)}')
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        part = folder_part(folder, checked_config(network_class(kind), config))
        model.network = part.build(network_class(kind), 0)  # not on the meta device: some buffers are computed
        part.fill(model.network, str(pretrained))
        root = source.path
        schedule = root / 'scheduler' / 'scheduler_config.json'
        vae = load_autoencoder(root) if (root / 'vae').is_dir() else None
        text = TextEncoder.from_source(root) if (root / 'text_encoder').is_dir() else None
        meta = read_json(root / META) if (root / META).is_file() else {}
        found = build_schedule(read_json(schedule) if schedule.is_file() else DEFAULT_SCHEDULE)
        model._finish(kind, found, Frozen(vae, text), meta)
        return model

    def _finish(self, kind: str, schedule: NoiseSchedule, frozen: Frozen, meta: Mapping[str, Any]) -> None:
        self.kind, self.schedule, self.frozen = kind, schedule, frozen
        config = self.network.config
        self.num_classes = meta.get('num_classes')
        if kind == 'DiTTransformer2DModel':
            self.null_class = config.num_embeds_ada_norm
            for module in self.network.modules():
                if hasattr(module, 'dropout_prob'):  # each block would drop labels on its own: they are dropped once, before
                    module.dropout_prob = 0.0
        else:
            self.null_class = self.num_classes
        channels = 3 if frozen.vae is None else frozen.vae.config.latent_channels
        out = config.out_channels or config.in_channels
        self.learns_variance = out == 2 * channels  # of ADM and DiT as published: beside the prediction stands a variance
        if config.in_channels != channels or not (out == channels or self.learns_variance):
            raise ValueError(
                f'the network has {config.in_channels} channels in and {out} out; allowed: {channels} and {channels} '
                f'({"images" if frozen.vae is None else "the latents of the autoencoder"}). '
                f'Set in_channels={channels}, out_channels={channels}'
            )
        embedded = config.get('num_class_embeds') if kind == 'UNet2DModel' else None
        if embedded is not None and self.num_classes is None:
            raise ValueError(
                f'the network has num_class_embeds={embedded} and no class for "unknown": set num_classes={embedded - 1} instead, which adds '
                'one; of saved weights, mmdiffrep.json beside them must say it'
            )
        if not self.takes_text:
            return
        if frozen.text is None:
            raise ValueError('a UNet2DConditionModel is told a text: give text_encoder=… (a folder with text_encoder/ and tokenizer/)')
        width = frozen.text.width
        if width != config.cross_attention_dim:
            raise ValueError(
                f'the text encoder gives tokens of {width} channels, the network takes {config.cross_attention_dim}: set '
                f'cross_attention_dim={width}'
            )

    # ---- what it is told -----------------------------------------------------------------------------------

    @property
    def takes_text(self) -> bool:
        return self.kind == 'UNet2DConditionModel'

    @property
    def takes_classes(self) -> bool:
        return self.kind == 'DiTTransformer2DModel' or self.num_classes is not None

    def condition(
        self, batch: int, class_ids: Tensor | None = None, prompts: Sequence[str] | None = None, drop: Tensor | None = None
    ) -> Condition | None:
        """What the network is told of a batch; what is not given, or where ``drop`` (B,) bool says so, is the null class or empty text.

        Raises:
            ValueError: classes or texts for a network that takes none, or unknown class ids.
        """
        if prompts is not None and not self.takes_text:
            raise ValueError(f'this {self.kind} takes no text: leave prompts out')
        if class_ids is not None and not self.takes_classes:
            raise ValueError(f'this {self.kind} takes no classes: leave class ids out, or train it with num_classes=…')
        device = next(self.parameters()).device
        if self.takes_text:
            dropped = [False] * batch if drop is None else drop.tolist()
            texts = [''] * batch if prompts is None else ['' if d else p for d, p in zip(dropped, prompts)]
            assert self.frozen.text is not None
            return Condition(tokens=self.frozen.text(texts).to(device))
        if not self.takes_classes:
            return None
        null = torch.full((batch,), self.null_class, device=device)
        if class_ids is None:
            return Condition(class_ids=null)
        class_ids = class_ids.to(device)
        if bool(((class_ids < 0) | (class_ids > self.null_class)).any()):
            raise ValueError(f'class ids {class_ids.tolist()} are unknown; allowed: 0 to {self.null_class} ("unknown")')
        return Condition(class_ids=class_ids if drop is None else torch.where(drop.to(device), null, class_ids))

    # ---- the network ---------------------------------------------------------------------------------------

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The network's output (B, C, h, w), in the schedule's own prediction, for x_t (B, C, h, w) at times t (B,)."""
        return self.call(self.network, x_t, t, condition)

    def call(self, network: Callable[..., Any], x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """:meth:`forward` through ``network``: the model's own, or a compiled one of the same weights."""
        output = self._call(network, x_t, t, condition)
        return output.chunk(2, 1)[0] if self.learns_variance else output

    def _call(self, network: Callable[..., Any], x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        x = self.schedule.network_input(x_t, t)
        time = self.schedule.network_time(t)
        if self.kind == 'UNet2DConditionModel':
            return network(x, time, encoder_hidden_states=condition.tokens.to(x.dtype), return_dict=False)[0]  # type: ignore[union-attr]
        labels = None if condition is None else condition.class_ids
        if self.kind == 'UNet2DModel':
            return network(x, time, class_labels=labels, return_dict=False)[0]
        if x.shape[-1] != x.shape[-2]:
            raise ValueError(f'a DiT gives square maps only; got {tuple(x.shape[-2:])}. Give square images')
        return network(x, timestep=time, class_labels=labels, return_dict=False)[0]

    # ---- images and latents --------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> x0: themselves, or scaled latents: the posterior's mean, or a sample of it."""
        vae = self.frozen.vae
        if vae is None:
            return images
        # what is frozen computes in its own precision, also where training runs under autocast
        with torch.autocast(images.device.type, enabled=False):
            posterior = vae.encode(images.to(next(vae.parameters()).dtype)).latent_dist
            latent = posterior.sample() if sample else posterior.mean
        return (latent * vae.config.scaling_factor).to(images.dtype)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """The inverse: x0 -> images (B, 3, H, W), about [-1, 1]."""
        vae = self.frozen.vae
        if vae is None:
            return x0
        with torch.autocast(x0.device.type, enabled=False):
            return vae.decode(x0.to(next(vae.parameters()).dtype) / vae.config.scaling_factor).sample

    @property
    def stride(self) -> int:
        """Image pixels per value of x0."""
        return 1 if self.frozen.vae is None else 2 ** (len(self.frozen.vae.config.block_out_channels) - 1)

    def sample_shape(self, size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, h, w) of x0 for images of ``size`` (H, W); default: what the network was made for.

        Raises:
            ValueError: a size that the network cannot give.
        """
        config = self.network.config
        stride = self.stride
        if size is None:
            size = (config.sample_size or 64) if isinstance(config.sample_size, (int, type(None))) else tuple(config.sample_size)
            height, width = (size, size) if isinstance(size, int) else size
            return config.in_channels, height, width
        height, width = (size, size) if isinstance(size, int) else size
        if self.kind == 'DiTTransformer2DModel':
            step = stride * config.patch_size
        else:
            step = stride * 2 ** sum(getattr(block, 'downsamplers', None) is not None for block in self.network.down_blocks)
        if height % step or width % step or (self.kind == 'DiTTransformer2DModel' and height != width):
            square = ', square' if self.kind == 'DiTTransformer2DModel' else ''
            raise ValueError(f'images of {height}×{width} cannot be drawn; allowed: multiples of {step}{square}')
        return config.in_channels, height // stride, width // stride

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GenerativeModel:
        for module in self.frozen.modules():
            module._apply(fn)
        return super()._apply(fn, recurse)

    # ---- saving --------------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> str | None:
        """The diffusers pipeline that draws from the saved folder; None: only this package does."""
        if self.schedule.prediction == 'edm':
            return None
        if self.kind == 'UNet2DConditionModel':
            return 'StableDiffusionPipeline' if self.frozen.vae is not None else None
        if self.kind == 'UNet2DModel':
            return 'DDPMPipeline' if self.frozen.vae is None and not self.takes_classes else None
        return 'DiTPipeline' if self.frozen.vae is not None and self.null_class == 1000 else None

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a new folder in diffusers' layout; the weights of all parts in ``dtype``."""
        import copy

        import diffusers

        folder = Path(folder)
        folder.mkdir(parents=True)
        parts: dict[str, Any] = {KINDS[self.kind]: copy.deepcopy(self.network).to('cpu', dtype).eval()}
        if self.frozen.vae is not None:
            parts['vae'] = copy.deepcopy(self.frozen.vae).to('cpu', dtype)
        if self.frozen.text is not None:
            parts['text_encoder'] = copy.deepcopy(self.frozen.text.model).to('cpu', dtype)
            parts['tokenizer'] = self.frozen.text.tokenizer
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        if 'text_encoder' in parts:
            _load_in_fp32(folder / 'text_encoder' / 'config.json')
        (folder / 'scheduler').mkdir()
        _write_json(folder / 'scheduler' / 'scheduler_config.json', self.schedule.to_config())
        if self.pipeline is not None:
            index: dict[str, Any] = {'_class_name': self.pipeline, '_diffusers_version': diffusers.__version__}
            library = dict(text_encoder='transformers', tokenizer='transformers')
            index |= {name: [library.get(name, 'diffusers'), type(part).__name__] for name, part in parts.items()}
            index['scheduler'] = ['diffusers', self.schedule.to_config()['_class_name']]
            if self.pipeline == 'StableDiffusionPipeline':
                index |= dict(safety_checker=[None, None], feature_extractor=[None, None], image_encoder=[None, None])
                index['requires_safety_checker'] = False
            _write_json(folder / 'model_index.json', index)
        if self.num_classes is not None:
            _write_json(folder / META, dict(num_classes=self.num_classes))


def _load_in_fp32(path: Path) -> None:
    """transformers loads in the dtype that a config names, diffusers in fp32: a pipeline of both must not be of two."""
    _write_json(path, {**json.loads(path.read_text(encoding='utf-8')), 'dtype': 'float32'})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')

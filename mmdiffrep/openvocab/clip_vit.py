"""CLIP's image transformers taken apart: tokens, blocks with an attention mask, projection. open_clip's and transformers' alike.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021. The libraries' own modules do the
work; nothing of their forwards is copied but the order of its steps.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import load_clip
from .tokenizer import open_clip

Size = tuple[int, int]
LOGIT_SCALE = 100.0  # what nearly all CLIP models end at, being their bound


class VisionTransformer(ABC):
    """A frozen CLIP image transformer. Not a module, so that nothing that holds one has it in its checkpoint.

    Attributes:
        module: the library's.
        size, patch: pixels (height, width) of the input that its positions were trained for, and of a patch.
        width: of the embedding.
        heads: of its attention.
        mean, std: of RGB in [0, 1].
        logit_scale: what cosines are multiplied with.
    """

    module: nn.Module
    size: Size
    patch: Size
    width: int
    heads: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logit_scale: float

    @abstractmethod
    def tokens(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, H, W) -> (B, 1 + h * w, C): the class token and the patches as the first block gets them."""

    @abstractmethod
    def blocks(self, x: Tensor, attention: Tensor) -> Tensor:
        """Tokens (B, L, C) through all blocks, with what is added to the attention's logits (B, L, L)."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Class tokens (…, C) -> embeddings (…, width), not normalised."""


def resized_positions(positions: Tensor, old: Size, new: Size) -> Tensor:
    """Learned positions (1 + h * w, C), the class token's first, for another grid: bicubic, as open_clip resizes them."""
    if old == new:
        return positions
    first, grid = positions[:1], positions[1:]
    maps = grid.unflatten(0, old).permute(2, 0, 1)[None].float()  # (1, C, h, w)
    maps = F.interpolate(maps, new, mode='bicubic', antialias=True, align_corners=False)
    return torch.cat([first, maps[0].flatten(1).T.to(positions.dtype)])


class OpenClipViT(VisionTransformer):
    """``open_clip.CLIP`` (or ``CustomTextCLIP``) with open_clip's own transformer as its image tower.

    Raises:
        ValueError: another tower, or one that does not pool by its class token.
    """

    def __init__(self, model: Any) -> None:
        self.module = visual = frozen(model.visual)
        self._check(visual)
        self.size, self.patch = tuple(visual.image_size), tuple(visual.patch_size)
        self.width = visual.proj.shape[1]
        self.heads = visual.transformer.resblocks[0].attn.num_heads
        self.mean, self.std = normalisation(visual)
        self.logit_scale = scale_of(model)

    @staticmethod
    def _check(visual: Any) -> None:
        name = type(visual).__name__
        if not isinstance(visual, open_clip().transformer.VisionTransformer):
            raise ValueError(
                f"masked attention needs open_clip's own vision transformer, this CLIP has a {name} of {_inside(visual)}. "
                'MaskPoolClip does convolutional towers by timm (ConvNeXt); allowed here: ViT-B-32, ViT-L-14-336, …'
            )
        problems = []
        if visual.attn_pool is not None:
            problems.append('attention pooling (attentional_pool)')
        elif visual.pool_type != 'tok':
            problems.append(f'pool_type={visual.pool_type!r}')
        if visual.proj is None:
            problems.append('no projection')
        if problems:
            raise ValueError(
                f'masked attention reads the class token, this {name} has {" and ".join(problems)}. Take a CLIP that pools by its class '
                'token, such as ViT-L-14-336, or MaskPoolClip with a convolutional one'
            )

    def tokens(self, image: Tensor) -> Tensor:
        visual: Any = self.module
        x = visual.conv1(image)  # (B, C, h, w)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
        return visual.ln_pre(
            x + resized_positions(visual.positional_embedding, visual.grid_size, grid)
        )

    def blocks(self, x: Tensor, attention: Tensor) -> Tensor:
        # torch's attention wants a mask for each head; a boolean one would be cast to numbers on the way
        mask = attention.repeat_interleave(self.heads, 0)
        visual: Any = self.module
        for block in visual.transformer.resblocks:
            x = block(x, attn_mask=mask)
        return x

    def project(self, x: Tensor) -> Tensor:
        visual: Any = self.module
        return visual.ln_post(x) @ visual.proj


class TransformersViT(VisionTransformer):
    """transformers' ``CLIPVisionModelWithProjection``, or a whole ``CLIPModel``.

    Args:
        preprocess: entries of ``preprocessor_config.json``: ``image_mean``, ``image_std``.

    Raises:
        ValueError: another model.
    """

    def __init__(self, model: Any, preprocess: dict[str, Any] | None = None) -> None:
        if not (hasattr(model, 'vision_model') and hasattr(model, 'visual_projection')):
            raise ValueError(
                f"{type(model).__name__} is no CLIP image model; allowed: transformers' CLIPVisionModelWithProjection and CLIPModel"
            )
        parts = nn.ModuleDict(dict(vision=model.vision_model, projection=model.visual_projection))
        self.module = frozen(parts)
        config = getattr(model.config, 'vision_config', model.config)
        self.size, self.patch = (config.image_size,) * 2, (config.patch_size,) * 2
        self.width = model.visual_projection.out_features
        self.heads = config.num_attention_heads
        constants = open_clip().constants
        preprocess = preprocess or {}
        self.mean = tuple(preprocess.get('image_mean', constants.OPENAI_DATASET_MEAN))
        self.std = tuple(preprocess.get('image_std', constants.OPENAI_DATASET_STD))
        self.logit_scale = scale_of(model)

    def tokens(self, image: Tensor) -> Tensor:
        vision: Any = self.module['vision']  # type: ignore[index]
        embeddings = vision.embeddings
        x = embeddings.patch_embedding(image)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([embeddings.class_embedding.expand(len(x), 1, -1), x], 1)
        old = (self.size[0] // self.patch[0], self.size[1] // self.patch[1])
        positions = resized_positions(embeddings.position_embedding.weight, old, grid)
        return vision.pre_layrnorm(x + positions)  # transformers' spelling

    def blocks(self, x: Tensor, attention: Tensor) -> Tensor:
        encoder: Any = self.module['vision'].encoder  # type: ignore[index]
        return encoder(inputs_embeds=x, attention_mask=attention[:, None])[0]

    def project(self, x: Tensor) -> Tensor:
        module: Any = self.module
        return module['projection'](module['vision'].post_layernorm(x))


def find_vit(
    name: str | Path | nn.Module, pretrained: str | None = None, library: str = 'open_clip'
) -> VisionTransformer:
    """The image transformer of a CLIP by its name, as ``load_clip`` takes it, or transformers' folder or id; or of a model itself.

    Raises:
        FileNotFoundError: nothing is there, or it cannot be fetched.
        ValueError: an unknown library, or a model without what is needed.
    """
    if library not in ('open_clip', 'transformers'):
        raise ValueError(f"library={library!r} is unknown; allowed: 'open_clip', 'transformers'")
    if isinstance(name, nn.Module):
        return OpenClipViT(name) if hasattr(name, 'visual') else TransformersViT(name)
    if library == 'open_clip':
        return OpenClipViT(load_clip(name, pretrained)[0])
    if pretrained is not None:
        raise ValueError(
            f'transformers models have weights of their own: leave pretrained={pretrained!r} out'
        )
    from transformers import AutoConfig, CLIPModel, CLIPVisionModelWithProjection

    try:
        vision = AutoConfig.from_pretrained(str(name)).model_type == 'clip_vision_model'
        model = (CLIPVisionModelWithProjection if vision else CLIPModel).from_pretrained(str(name))
        file = Path(name) / 'preprocessor_config.json'
        preprocess = json.loads(file.read_text(encoding='utf-8')) if file.is_file() else None
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f'no transformers CLIP at {str(name)!r} ({str(error).strip().splitlines()[0]}). Give a folder written by save_pretrained '
            "(config.json, model.safetensors), a hub id such as 'openai/clip-vit-large-patch14-336', or library='open_clip'"
        ) from error
    return TransformersViT(model, preprocess)


def frozen(module: Any) -> Any:
    """A copy in eval mode that takes no gradients, fp32; the original stays as it is."""
    return copy.deepcopy(module).float().eval().requires_grad_(False)


def normalisation(visual: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that open_clip noted in an image tower when it loaded one; CLIP's own where it did not."""
    constants = open_clip().constants
    noted: Sequence[Any] = [getattr(visual, f'image_{what}', None) for what in ('mean', 'std')]
    fallback = constants.OPENAI_DATASET_MEAN, constants.OPENAI_DATASET_STD
    mean, std = (tuple(value or other) for value, other in zip(noted, fallback))
    return mean, std


def scale_of(model: Any) -> float:
    scale = getattr(model, 'logit_scale', None)
    return LOGIT_SCALE if scale is None else float(scale.detach().float().exp())


def _inside(visual: Any) -> str:
    return type(getattr(visual, 'trunk', visual)).__name__

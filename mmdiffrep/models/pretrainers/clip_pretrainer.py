"""ClipPretrainer: trains an open_clip model on image–caption pairs (Radford et al., ICML 2021, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import get_rank, get_world_size
from mmengine.model import BaseModel
from torch import Tensor

from mmdiffrep.openvocab.clip import MAX_LOGIT_SCALE, build_clip, plain, save_clip
from mmdiffrep.openvocab.tokenizer import build_tokenizer, open_clip
from mmdiffrep.registry import MODELS


@MODELS.register_module()
class ClipPretrainer(BaseModel):
    """Image and caption towers by open_clip, and its contrastive loss.

    Logits are s · <image, text> of unit vectors, s = exp(logit_scale) <= 100; the loss is the mean of the cross entropies of images
    over the batch's captions and of captions over its images. With several processes the batch is all processes' together.

    Args:
        clip: open_clip's model config: ``embed_dim``, ``vision_cfg``, ``text_cfg``. ``vocab_size``, ``pool_type`` and ``eos_id`` of
            ``text_cfg`` follow from the vocabulary.
        vocabulary: texts (or one) whose words the vocabulary holds; other words are split into pieces, to single bytes where need be.
            None: the whole of CLIP's, 49408 entries.
        class_names: what images are compared with in mode ``'predict'``.
        templates: sentences about a class, ``{}`` is its name; their embeddings are averaged.
        local_loss, gather_with_grad: open_clip's ways of sharing the work between processes.
        data_preprocessor: the default brings mmcv's BGR to RGB and to open_clip's mean and deviation.
    """

    def __init__(
        self,
        clip: Mapping[str, Any],
        vocabulary: str | Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] = ('{}',),
        local_loss: bool = False,
        gather_with_grad: bool = False,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        constants = open_clip().constants
        default = dict(
            type='ImgDataPreprocessor', bgr_to_rgb=True,
            mean=[255 * x for x in constants.OPENAI_DATASET_MEAN], std=[255 * x for x in constants.OPENAI_DATASET_STD],
        )  # fmt: skip
        super().__init__(data_preprocessor or default, init_cfg)
        _check_templates(class_names, templates)
        self.class_names = None if class_names is None else list(class_names)
        self.templates = list(templates)
        text = clip.get('text_cfg', {})
        texts = [vocabulary] if isinstance(vocabulary, str) else vocabulary
        self.tokenizer = build_tokenizer(texts, text.get('context_length', 77))
        self.config = _with_vocabulary(clip, len(self.tokenizer.tokenizer))
        self.clip = build_clip(self.config)
        self.loss = open_clip().ClipLoss(
            local_loss, gather_with_grad, rank=get_rank(), world_size=get_world_size()
        )

    def forward(
        self,
        inputs: Tensor,
        caption: Sequence[str] | None = None,
        label: Tensor | None = None,
        data_samples: Any = None,
        mode: str = 'tensor',
    ) -> Any:
        """Images (B, 3, S, S), normalised, with B captions.

        ``'loss'``: dict(loss, logit_scale). ``'predict'``: one dict an image of ``embedding`` (D,), with ``text_embedding`` (D,) where
        there are captions, ``scores`` (K,), the cosines with the class names, where there are any, and ``label``. ``'tensor'``: unit
        vectors (B, D) of images, and of captions or None.
        """
        if inputs.shape[2:] != self.image_size:
            raise ValueError(
                f'images of {tuple(inputs.shape[2:])} pixels were given, vision_cfg says image_size={self.image_size}: set the '
                "data set's size, or vision_cfg"
            )
        if mode == 'predict':
            return self._predict(inputs, caption, label)
        images, texts = self._embed(inputs, caption)
        if mode == 'tensor':
            return images, texts
        if texts is None:
            raise ValueError(
                "mode='loss' needs captions: use a data set that gives them, such as mmdiffrep.ImageCaptions"
            )
        with torch.no_grad():  # open_clip clamps after each step; before the next is the same, and is reached under DDP too
            self.clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        scale = self.clip.logit_scale.exp()
        loss = self.loss(images.float(), texts.float(), scale, self.clip.logit_bias)
        return dict(loss=loss, logit_scale=scale.detach())

    @property
    def image_size(self) -> tuple[int, int]:
        size = self.clip.visual.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _embed(
        self, inputs: Tensor, captions: Sequence[str] | None
    ) -> tuple[Tensor, Tensor | None]:
        images = self.clip.encode_image(inputs, normalize=True)
        if captions is None:
            return images, None
        # short captions repeat within a batch, and need to be read only once
        places = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
        ids = self.tokenizer(list(places)).to(inputs.device)
        texts = self.clip.encode_text(ids, normalize=True)
        return images, texts[[places[caption] for caption in captions]]

    @torch.no_grad()
    def _predict(
        self, inputs: Tensor, captions: Sequence[str] | None, labels: Tensor | None
    ) -> list[dict[str, Tensor]]:
        images, texts = self._embed(inputs, captions)
        found = dict(embedding=images)
        if texts is not None:
            found['text_embedding'] = texts
        if self.class_names is not None:
            found['scores'] = images @ self.text_classifier(self.class_names, self.templates).T
        if labels is not None:
            found['label'] = labels
        return [{key: value[i].cpu() for key, value in found.items()} for i in range(len(inputs))]

    def text_classifier(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Unit vectors (K, D): the mean over templates of each name's embeddings."""
        weights = open_clip().build_zero_shot_classifier(
            self.clip,
            self.tokenizer,
            list(class_names),
            list(templates),
            device=next(self.clip.parameters()).device,
        )
        return F.normalize(weights.T, dim=-1)

    def save_open_clip(self, folder: str | Path, name: str, dtype: torch.dtype) -> None:
        """A folder in open_clip's format."""
        mean, std = (
            getattr(self.data_preprocessor, key).flatten() / 255 for key in ('mean', 'std')
        )
        preprocess = dict(
            mean=[round(x, 8) for x in mean.tolist()], std=[round(x, 8) for x in std.tolist()],
            resize_mode='squash',  # whole pictures, as in training
        )  # fmt: skip
        save_clip(self.clip, self.config, self.tokenizer, folder, name, dtype, preprocess)

    def card(self) -> list[str]:
        """Lines of a model card."""
        image, text = self.clip.visual, self.clip.transformer
        sizes = [
            sum(p.numel() for p in part.parameters()) / 1e6 for part in (self.clip, image, text)
        ]
        return [
            f'- network: open_clip {type(self.clip).__name__}, {sizes[0]:.2f}M parameters: images {sizes[1]:.2f}M at '
            f'{self.image_size[0]}×{self.image_size[1]}, text transformer {sizes[2]:.2f}M',
            f'- vocabulary: {self.clip.vocab_size} entries, {self.clip.context_length} tokens a caption',
        ]


def _check_templates(class_names: Sequence[str] | None, templates: Sequence[str]) -> None:
    if isinstance(class_names, str) or (class_names is not None and not class_names):
        raise ValueError(
            f'class_names={class_names!r} does not fit; allowed: a list of names, or None'
        )
    bad = [template for template in templates if '{}' not in template]
    if isinstance(templates, str) or bad or not templates:
        raise ValueError(
            f"templates={templates!r} does not fit; allowed: a list of sentences with '{{}}' where the name belongs"
        )


def _with_vocabulary(clip: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The config with what the vocabulary says. ValueError where it says something else."""
    config = plain(clip)
    text = config.setdefault('text_cfg', {})
    for key, value in dict(vocab_size=size, eos_id=size - 1, pool_type='eos').items():
        if text.setdefault(key, value) != value:
            raise ValueError(
                f'text_cfg has {key}={text[key]!r}, but the vocabulary needs {value!r}: leave it out'
            )
    return config

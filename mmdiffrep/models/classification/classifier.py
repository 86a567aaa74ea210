"""DiffusionClassifier: a backbone's maps, a head, one class an image."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from mmdiffrep.registry import MODELS
from mmdiffrep.structures import ClassSample


@MODELS.register_module()
class DiffusionClassifier(BaseModel):
    """Images -> maps of a backbone -> logits of a head. Any backbone that gives a tuple of maps (B, C_k, h_k, w_k) will do.

    Args:
        backbone: config, e.g. of ``mmdiffrep.DiffusionBackbone``, or of one of mmseg or timm (``mmdiffrep.TimmBackbone``).
        head: config of ``mmdiffrep.PooledHead``, ``ConvHead`` or ``AttentionFusion``. ``in_channels``, ``in_strides`` and
            ``num_timesteps`` are filled in from the backbone where the head takes them and the config does not say them.
        data_preprocessor: mmengine's ``ImgDataPreprocessor``; default: RGB as it is, 0 … 255.
        label_smoothing: of the cross entropy.

    Raises:
        ValueError: a label outside the head's classes; a checkpoint for other classes.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        head: Mapping[str, Any],
        data_preprocessor: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        if data_preprocessor is None:
            data_preprocessor = dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True)
        super().__init__(data_preprocessor=dict(data_preprocessor), init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = MODELS.build(_completed(head, self.backbone))
        self.label_smoothing = label_smoothing
        self._register_load_state_dict_pre_hook(self._check_classes)

    def forward(
        self, inputs: Tensor, data_samples: list[ClassSample] | None = None, mode: str = 'tensor'
    ) -> Any:
        """Images (B, 3, H, W) as the data preprocessor left them.

        ``mode='tensor'``: logits (B, K); ``'loss'``: ``loss`` and ``accuracy`` in percent; ``'predict'``: the data samples with
        ``pred_scores`` and ``pred_label``.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise ValueError(f"mode={mode!r} is unknown; allowed: 'tensor', 'loss', 'predict'")
        logits = self.head(self.backbone(inputs)).float()
        if mode == 'loss':
            return self._loss(logits, self._labels(data_samples or [], logits.device))
        return logits if mode == 'tensor' else _said(logits, data_samples)

    def _loss(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return dict(loss=loss, accuracy=100 * (logits.detach().argmax(1) == labels).float().mean())

    def _labels(self, samples: Sequence[ClassSample], device: torch.device) -> Tensor:
        for sample in samples:
            if not 0 <= sample.gt_label < self.head.num_classes:
                raise ValueError(
                    f'{sample.get("img_path", "an image")} is of class {sample.gt_label}, and the head has '
                    f'{self.head.num_classes} classes: set model.head.num_classes to the number of the data set\'s'
                )
        return torch.tensor([sample.gt_label for sample in samples], device=device)

    def _check_classes(self, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        """mmengine loads leniently: a head of other classes would stay untrained, and nothing would say so."""
        own = self.head.state_dict()
        for name, value in own.items():
            given = state.get(f'{prefix}head.{name}')
            if given is None or given.shape == value.shape:
                continue
            raise ValueError(
                f'the checkpoint\'s head.{name} is {tuple(given.shape)}, this model\'s {tuple(value.shape)}: it was trained for other '
                f'classes or another head (this one has {self.head.num_classes} classes). Set model.head as it was trained, or '
                'leave the checkpoint\'s head out'
            )


def _completed(head: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
    """A head's config with what the backbone knows."""
    head = dict(head)
    taken = inspect.signature(MODELS.get(head['type'])).parameters
    known = dict(
        in_channels=getattr(backbone, 'out_channels', None),
        in_strides=getattr(backbone, 'out_strides', None),
        num_timesteps=len(getattr(backbone, 'timesteps', [0])),
    )
    for name, value in known.items():
        if name in taken and value is not None and head.get(name) is None:
            head[name] = value
    return head


def _said(logits: Tensor, samples: list[ClassSample] | None) -> list[ClassSample]:
    samples = samples or [ClassSample() for _ in logits]
    for sample, scores in zip(samples, logits.softmax(1)):
        sample.pred_scores = scores
        sample.pred_label = int(scores.argmax())
    return samples

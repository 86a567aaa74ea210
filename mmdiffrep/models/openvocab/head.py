"""OpenVocabMask2FormerHead: Mask2Former whose masks are named by words that are handed in.

ODISE (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803, sections 3.3 and 3.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import Mask2FormerHead
from torch import Tensor, nn

from mmdiffrep.openvocab.grounding import grounding_loss
from mmdiffrep.openvocab.text_bank import TextBank
from mmdiffrep.registry import MODELS

from .pooling import MaskPooledEmbedding
from .text_classifier import TextClassifier

SUPERVISIONS = ('labels', 'captions')
VOID = 255  # in mmdet's maps of labels


class HeadOutput(NamedTuple):
    """Of one decoder layer."""

    embeddings: Tensor  # (B, Q, C)
    masks: Tensor  # logits (B, Q, h, w)
    objectness: Tensor | None  # logits (B, Q, 2) of object and void; None when trained on labels


@MODELS.register_module()
class OpenVocabMask2FormerHead(Mask2FormerHead):
    """mmdet's Mask2Former without class layer: a mask's embedding is compared with text embeddings, of any number of classes.

    Args:
        text_channels: width of the text embeddings.
        embed_channels: width in which masks and words are compared.
        supervision: ``'labels'``: masks with class names; ``'captions'``: masks without classes, and captions.
        void_weight: weight of void in the cross entropy.
        loss_cls_weight, loss_grounding_weight: of the classification, of the captions' contrastive loss.
        others: mmdet's. Numbers of classes are not among them: they come with the text bank, at every call.
    """

    def __init__(
        self,
        *args: Any,
        text_channels: int,
        embed_channels: int = 256,
        supervision: str = 'labels',
        void_weight: float = 0.1,
        loss_cls_weight: float = 2.0,
        loss_grounding_weight: float = 2.0,
        **kwargs: Any,
    ) -> None:
        if supervision not in SUPERVISIONS:
            raise ValueError(f'supervision={supervision!r} is unknown; allowed: {SUPERVISIONS}')
        fixed = {'num_things_classes', 'num_stuff_classes', 'loss_cls'} & set(kwargs)
        if fixed:
            raise ValueError(
                f'{sorted(fixed)} were given to OpenVocabMask2FormerHead: classes come with the vocabulary; weights are void_weight '
                'and loss_cls_weight'
            )
        super().__init__(
            *args,
            num_things_classes=1,
            num_stuff_classes=0,
            loss_cls=_cross_entropy(loss_cls_weight, [1.0, void_weight]),
            **kwargs,
        )
        del self.cls_embed
        self.supervision = supervision
        self.void_weight = void_weight
        self.loss_grounding_weight = loss_grounding_weight
        width = self.query_feat.embedding_dim
        self.mask_embedding = MaskPooledEmbedding(
            self.mask_embed[-1].out_features, width, embed_channels
        )
        self.classifier = TextClassifier(text_channels, embed_channels)
        self.objectness = nn.Linear(width, 2) if supervision == 'captions' else None
        if self.objectness is not None:  # it says what is void; DDP would wait for a gradient
            self.classifier.void.requires_grad_(False)

    # ---- forward ---------------------------------------------------------------------------------------------

    def _forward_head(
        self, decoder_out: Tensor, mask_feature: Tensor, attn_mask_target_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As mmdet's; in the place of class logits stand the masks' embeddings, with the objectness behind them."""
        queries = self.transformer_decoder.post_norm(decoder_out)
        masks = torch.einsum('bqc,bchw->bqhw', self.mask_embed(queries), mask_feature)
        embeddings = self.mask_embedding(mask_feature, masks, queries)
        if self.objectness is not None:
            embeddings = torch.cat([embeddings, self.objectness(queries)], -1)
        small = F.interpolate(
            masks.detach(), attn_mask_target_size, mode='bilinear', align_corners=False
        )
        hidden = (small < 0).flatten(2).unsqueeze(1).repeat(1, self.num_heads, 1, 1).flatten(0, 1)
        return embeddings, masks, hidden

    def outputs(self, x: Sequence[Tensor]) -> list[HeadOutput]:
        """Maps (B, C, h, w), fine to coarse -> one :class:`HeadOutput` for the queries and each decoder layer."""
        embeddings, masks = super().forward(list(x), [])
        if self.objectness is None:
            return [HeadOutput(e, m, None) for e, m in zip(embeddings, masks)]
        return [HeadOutput(e[..., :-2], m, e[..., -2:]) for e, m in zip(embeddings, masks)]

    def predict(self, x: Sequence[Tensor], size: tuple[int, int]) -> HeadOutput:
        """The last layer's output, its masks (B, Q, H, W) enlarged to the batch's image size."""
        last = self.outputs(x)[-1]
        masks = F.interpolate(last.masks, size, mode='bilinear', align_corners=False)
        return last._replace(masks=masks)

    # ---- losses ----------------------------------------------------------------------------------------------

    def loss(
        self,
        x: Sequence[Tensor],
        batch_data_samples: Sequence[Any],
        bank: TextBank | None = None,
        phrases: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of every decoder layer.

        Args:
            x: maps (B, C, h, w), fine to coarse.
            batch_data_samples: with ``gt_instances`` and ``gt_sem_seg``, labelled by the bank's classes, things first.
            bank: the training vocabulary's text bank.
            phrases: an image's noun phrases' embeddings (k, D) each, when trained on captions.
        """
        outputs = self.outputs(x)
        targets = self._targets(batch_data_samples, bank)
        if self.supervision == 'captions':
            logits = [output.objectness for output in outputs]
        else:
            assert bank is not None
            logits = [self.classifier(output.embeddings, bank) for output in outputs]
        metas = [sample.metainfo for sample in batch_data_samples]
        losses = self.loss_by_feat(logits, [output.masks for output in outputs], targets, metas)
        if self.supervision == 'captions':
            losses |= self._grounding(outputs, phrases or [])
        return losses

    def _targets(self, samples: Sequence[Any], bank: TextBank | None) -> list[Any]:
        """Instances with labels and masks, stuff included; without classes when trained on captions."""
        things = bank.vocabulary.num_things if bank is not None else 0
        total = len(bank.vocabulary) if bank is not None else 0
        if things <= VOID < total:
            raise ValueError(
                f'class {VOID} of the vocabulary ({total} classes, {things} things) is stuff, which mmdet cannot label: {VOID} is its '
                f'mark for void. Train on at most {VOID} classes, or on more than {VOID} things'
            )
        self._set_classes(things, total - things)
        segments = [sample.gt_sem_seg if 'gt_sem_seg' in sample else None for sample in samples]
        targets = self.preprocess_gt([sample.gt_instances for sample in samples], segments)
        if self.supervision == 'captions':
            for target in targets:
                target.labels = torch.zeros_like(target.labels)
            self._set_classes(1, 0)
        return targets

    def _set_classes(self, things: int, stuff: int) -> None:
        """What mmdet's code reads: it takes the numbers of classes to be fixed."""
        self.num_things_classes, self.num_stuff_classes = things, stuff
        self.num_classes = things + stuff
        self.class_weight = [1.0] * self.num_classes + [self.void_weight]
        self.loss_cls.class_weight = self.class_weight

    def _grounding(
        self, outputs: Sequence[HeadOutput], phrases: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        words = [
            F.normalize(self.classifier.project(one.to(outputs[0].masks.device)), dim=-1)
            for one in phrases
        ]
        names = [f'd{i}.loss_grounding' for i in range(len(outputs) - 1)] + ['loss_grounding']
        return {
            name: self.loss_grounding_weight
            * grounding_loss(
                F.normalize(output.embeddings.float(), dim=-1), words, self.classifier.scale
            )
            for name, output in zip(names, outputs)
        }


def _cross_entropy(weight: float, class_weight: list[float]) -> Mapping[str, Any]:
    from mmengine import ConfigDict

    return ConfigDict(
        type='mmdet.CrossEntropyLoss',
        use_sigmoid=False,
        loss_weight=weight,
        reduction='mean',
        class_weight=class_weight,
    )

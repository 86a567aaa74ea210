"""OpenVocabSegmentor: panoptic, instance and semantic segmentation of things named in any words.

ODISE (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803); the branch with a convolutional CLIP after FC-CLIP (Yu et al., NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmengine import ConfigDict
from torch import Tensor

from mmdiffrep.openvocab.fusion import fuse
from mmdiffrep.openvocab.phrases import noun_phrases, sample_phrases
from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.registry import MODELS

from .clip_branch import ClipBranch
from .naming import Naming
from .results import Results


@MODELS.register_module()
class OpenVocabSegmentor(BaseDetector):
    """Backbone, :class:`OpenVocabMask2FormerHead`, words, and at test time a CLIP that looks at the masks too.

    Args:
        backbone, neck, panoptic_head: configs.
        vocabulary: what is trained on (:meth:`Vocabulary.parse`), in the order of the data set's labels, things first. Also what is
            asked for where nothing else is said, and what makes a class a seen one.
        text: ``dict(encoder=dict(kind=…), templates='none', cache_dir=None)``: how names become embeddings.
        clip: ``dict(kind='attention'|'pool', name=…, templates='single', alpha=0.3, beta=0.7)``, or None: without.
        held_out: names left out of the vocabulary, as the data set's.
        ask: the vocabulary that is asked for where an image says nothing, if not the one trained on.
        void: ``'odise'``: void's probability is taken beside the classes asked for; ``'fixed'``: beside those trained on, so that it
            does not change with the vocabulary.
        phrases: for training on captions: ``dict(count=8, method='rule', template='a photo of a {}.')``.
        test_cfg: ``dict(panoptic=True, instance=True, semantic=True, object_mask_thr=0.0, overlap_thr=0.8, max_per_image=100)``.

    An image's own vocabulary is its data sample's metainfo ``vocabulary`` (anything that :meth:`Vocabulary.parse` takes).
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        panoptic_head: Mapping[str, Any],
        vocabulary: Any,
        text: Mapping[str, Any],
        neck: Mapping[str, Any] | None = None,
        clip: Mapping[str, Any] | None = None,
        held_out: Sequence[str] = (),
        ask: Any = None,
        void: str = 'odise',
        phrases: Mapping[str, Any] | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if void not in ('odise', 'fixed'):
            raise ValueError(f"void={void!r} is unknown; allowed: 'odise', 'fixed'")
        self.backbone = MODELS.build(backbone)
        if neck is not None:
            self.neck = MODELS.build(neck)
        self.naming = Naming(vocabulary, held_out=held_out, **text)
        self.set_vocabulary(ask)
        self.panoptic_head = MODELS.build(
            ConfigDict(
                panoptic_head,
                train_cfg=train_cfg,
                test_cfg=None,
                text_channels=self.naming.channels,
            )
        )
        self.naming.start_void(self.panoptic_head.classifier.void)
        self.clip = ClipBranch(**clip) if clip is not None else None
        self.void = void
        self.phrases = dict(phrases or {})
        self.results = Results(**(test_cfg or {}))

    # ---- words -----------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        """What is asked for where an image says nothing."""
        return self.naming.current

    def set_vocabulary(self, source: Any) -> Vocabulary:
        """Ask for these classes from now on; None: those trained on.

        Raises:
            ValueError: empty, or a name twice; see :meth:`Vocabulary.parse`.
        """
        return self.naming.set(source)

    # ---- training --------------------------------------------------------------------------------------------

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of images (B, 3, H, W) with ``gt_instances`` and ``gt_sem_seg``; with ``caption`` where captions are trained on."""
        for sample in batch_data_samples:
            self.naming.check_trained(sample.metainfo.get('vocabulary'))
        x = self.extract_feat(batch_inputs)
        bank = self.naming.training_bank(batch_inputs.device)
        phrases = None
        if self.panoptic_head.supervision == 'captions':
            phrases = [self._phrases(sample, batch_inputs.device) for sample in batch_data_samples]
        return self.panoptic_head.loss(x, batch_data_samples, bank, phrases)

    def _phrases(self, sample: Any, device: torch.device) -> Tensor:
        """Embeddings (k, D) of noun phrases of one of the image's captions."""
        caption = sample.metainfo.get('caption')
        if not caption:
            raise ValueError(
                f'{sample.metainfo.get("img_path")} has no caption, and the head is trained on captions: give the data set a '
                "caption_file, and 'caption' among PackDetInputs' meta_keys"
            )
        settings = dict(dict(count=8, method='rule', template='a photo of a {}.'), **self.phrases)
        if not isinstance(caption, str):
            caption = caption[int(torch.randint(len(caption), ()))]
        found = noun_phrases(caption, settings['method']) or [caption]
        chosen = sample_phrases(found, settings['count'])
        return self.naming.embed([settings['template'].format(phrase) for phrase in chosen]).to(
            device
        )

    # ---- prediction ------------------------------------------------------------------------------------------

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        x = self.backbone(batch_inputs)
        return self.neck(x) if self.with_neck else x

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True
    ) -> Sequence[Any]:
        """The data samples with ``pred_panoptic_seg``, ``pred_panoptic``, ``pred_instances``, ``pred_sem_seg``; in the metainfo
        ``vocabulary`` (the class names) and ``seen``.

        Every image may have a vocabulary of its own; the result is what it would be alone.
        """
        output = self.panoptic_head.predict(
            self.extract_feat(batch_inputs), tuple(batch_inputs.shape[-2:])
        )
        for i, sample in enumerate(batch_data_samples):
            vocabulary = self.naming.parse(sample.metainfo.get('vocabulary'))
            height, width = sample.metainfo['img_shape'][:2]
            masks = output.masks[
                i, :, :height, :width
            ].float()  # what was padded is in neither masks nor image
            log_probs = self._name(
                output.embeddings[i],
                output.objectness[i] if output.objectness is not None else None,
                masks,
                batch_inputs[i, :, :height, :width],
                vocabulary,
            )
            size = tuple(sample.metainfo['ori_shape'][:2]) if rescale else (height, width)
            self.results.write(sample, log_probs, masks, size, vocabulary)
            sample.set_metainfo(
                dict(vocabulary=vocabulary, seen=vocabulary.seen_in(self.naming.trained))
            )
        return batch_data_samples

    def _name(
        self,
        embeddings: Tensor,
        objectness: Tensor | None,
        masks: Tensor,
        image: Tensor,
        vocabulary: Vocabulary,
    ) -> Tensor:
        """Log-probabilities (Q, K + 1) of the classes and void, for masks (Q, H, W) of an image (3, H, W)."""
        device = embeddings.device
        logits = self.panoptic_head.classifier(embeddings, self.naming.bank(vocabulary, device))
        p_void = None
        if objectness is not None:
            p_void = objectness.float().softmax(-1)[:, 1]
        elif self.void == 'fixed':
            bank = self.naming.training_bank(device)
            p_void = self.panoptic_head.classifier(embeddings, bank).softmax(-1)[:, -1]
        seen = torch.tensor(vocabulary.seen_in(self.naming.trained), device=device)
        if self.clip is None:  # the head alone
            return fuse(logits, torch.zeros_like(logits[:, :-1]), seen, 0, 0, p_void)
        return self.clip.fuse(logits, p_void, self._rgb(image), masks, vocabulary, seen)

    def _rgb(self, image: Tensor) -> Tensor:
        """An image (3, H, W) as the preprocessor left it -> RGB (3, H, W) in [0, 1]."""
        preprocessor = self.data_preprocessor
        rgb = image.float()
        if getattr(preprocessor, '_enable_normalize', False):
            rgb = rgb * preprocessor.std + preprocessor.mean
        if not getattr(preprocessor, '_channel_conversion', False):
            rgb = rgb.flip(0)  # images are read as BGR
        return (rgb / 255).clamp(0, 1)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        """The last decoder layer's embeddings (B, Q, C) and mask logits (B, Q, H, W)."""
        return self.panoptic_head.predict(
            self.extract_feat(batch_inputs), tuple(batch_inputs.shape[-2:])
        )[:2]

"""ClipBranch: a frozen CLIP looks at the predicted masks, and both opinions are fused. At test time only."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmdiffrep.openvocab.clip import random_clip
from mmdiffrep.openvocab.fusion import fuse
from mmdiffrep.openvocab.mask_pool import build_mask_classifier
from mmdiffrep.openvocab.text_bank import TextBanks
from mmdiffrep.openvocab.text_encoders import build_text_encoder
from mmdiffrep.openvocab.vocabulary import Vocabulary


class ClipBranch(nn.Module):
    """Args:
    kind: ``'attention'``: masked attention in a CLIP ViT (ODISE); ``'pool'``: a convolutional CLIP's features, averaged
        inside the masks (FC-CLIP).
    name, pretrained: of the CLIP, see :func:`~mmdiffrep.openvocab.clip.load_clip`.
    templates: prompts that a name is put into.
    alpha, beta: CLIP's share for classes seen in training, for the others.
    image_size: of CLIP's input; default: its own.
    random_seed: draw new weights from this seed for the architecture of ``name``, and random text embeddings: what CLIP finds by
        chance, and what it costs. Nothing is fetched; ``pretrained`` has no use then.
    """

    def __init__(
        self,
        kind: str = 'attention',
        name: str = 'mmdiffrep/toy-clip',
        pretrained: str | None = None,
        templates: Any = 'single',
        alpha: float = 0.3,
        beta: float = 0.7,
        image_size: int | None = None,
        cache_dir: str | None = None,
        random_seed: int | None = None,
    ) -> None:
        super().__init__()
        for key, value in dict(alpha=alpha, beta=beta).items():
            if not 0 <= value <= 1:
                raise ValueError(f'{key}={value!r} does not fit; allowed: a share from 0 to 1')
        self.alpha, self.beta = alpha, beta
        text: Any = dict(kind='open_clip', name=name, pretrained=pretrained)
        vision: Any = dict(name=name, pretrained=pretrained)
        if random_seed is not None:
            if pretrained is not None:
                raise ValueError(
                    f'pretrained={pretrained!r} has no use with random_seed={random_seed}: leave one of the two out'
                )
            vision = dict(name=random_clip(name, random_seed))
        self.classifier = build_mask_classifier(dict(kind=kind, image_size=image_size, **vision))
        if random_seed is not None:
            text = dict(kind='random', width=self.classifier.width, seed=random_seed)
        self.banks = TextBanks(build_text_encoder(text), templates, cache_dir)

    def fuse(
        self,
        logits: Tensor,
        p_void: Tensor | None,
        rgb: Tensor,
        masks: Tensor,
        vocabulary: Vocabulary,
        seen: Tensor,
    ) -> Tensor:
        """Log-probabilities (Q, K + 1).

        Args:
            logits: of the head (Q, K + 1), void last.
            p_void: (Q,), where void's probability is another than the logits'.
            rgb: the image (3, H, W) in [0, 1].
            masks: logits (Q, h, w), which cover the image.
            seen: (K,) bool.
        """
        bank = self.banks(vocabulary).to(logits.device)
        embeddings = self.classifier(rgb[None], [masks.sigmoid()])[0]
        scores = bank.class_scores(embeddings @ bank.embeddings.T) * self.classifier.logit_scale
        return fuse(logits, scores, seen, self.alpha, self.beta, p_void)

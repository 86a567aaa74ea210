"""EnsembleSegmentor: frozen features, a PixelEnsemble, an answer that says how sure it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from mmdiffrep.diffusion.feature_store import FeatureStore
from mmdiffrep.registry import MODELS

from .pixel_ensemble import PixelEnsemble, Said
from .stopping import unchanged
from .voting import image_uncertainty


@MODELS.register_module()
class EnsembleSegmentor(EncoderDecoder):
    """A frozen backbone, whose maps are computed once an image, and a :class:`PixelEnsemble` trained on sampled pixels.

    Training takes the batches of ``mmdiffrep.LabelledPixels`` and the features that ``mmdiffrep.PixelFeaturesHook`` has computed.
    At test time images are looked at one by one, so that a prediction depends on no other image in the batch. Pixels are classified at the
    image's original size, or at the size in which the network sees it where that is smaller; then shares of votes and uncertainty are
    resized. Data samples get, in the original size: ``pred_sem_seg``; ``seg_logits``, the shares of votes; ``uncertainty`` in nats; and a
    number, ``image_uncertainty``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.decode_head, PixelEnsemble):
            raise ValueError(
                f'EnsembleSegmentor has a decode_head of type {type(self.decode_head).__name__}; allowed: mmdiffrep.PixelEnsemble'
            )
        mode = (self.test_cfg or {}).get('mode', 'whole')
        if mode != 'whole':
            raise ValueError(
                f"test_cfg.mode={mode!r} was given; allowed: 'whole', images are looked at whole"
            )
        if self.with_auxiliary_head:
            raise ValueError('auxiliary_head was given, and nothing trains it: leave it out')
        self.store: FeatureStore | None = None

    def train_step(self, data: dict[str, Any], optim_wrapper: Any) -> dict[str, Tensor]:
        """One step on the pixels of ``LabelledPixels``; what has stopped stays as it is."""
        if 'pixels' not in data:
            raise ValueError(
                f'EnsembleSegmentor learns from sampled pixels, and the batch has {sorted(data)}: put the training data set into '
                "dict(type='mmdiffrep.LabelledPixels', dataset=...)"
            )
        if self.store is None:
            raise ValueError(
                "the training images have no features yet: add dict(type='mmdiffrep.PixelFeaturesHook') to custom_hooks"
            )
        image, y, x, labels = torch.cat(data['pixels'], dim=-1)  # (M, n) each
        device = self.decode_head.mlps.biases[0].device
        features = self.store.sample(image.flatten(), y.flatten(), x.flatten()).unflatten(
            0, image.shape
        )
        with optim_wrapper.optim_context(self):
            losses = self.decode_head.loss(features.to(device), labels.to(device))
        own = losses.pop('ce')
        loss, logged = self.parse_losses(losses)
        stopping = self.decode_head.stopping
        with unchanged(
            self.decode_head.mlps.parameters(), optim_wrapper.optimizer, stopping.stopped
        ):
            optim_wrapper.update_params(loss)
        stopping.note(own, int(data['epoch'][0]))
        return logged

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        raise ValueError(
            'EnsembleSegmentor is trained by train_step() on the batches of mmdiffrep.LabelledPixels'
        )

    def predict(self, inputs: Tensor, data_samples: list | None = None) -> list:
        """Images (B, 3, H, W) -> their data samples, with what the ensemble says of each."""
        samples = data_samples or [SegDataSample() for _ in range(len(inputs))]
        for image, sample in zip(inputs, samples):
            said = self._say(image, sample.metainfo)
            sample.set_data(
                dict(
                    seg_logits=PixelData(data=said.shares),
                    pred_sem_seg=PixelData(data=said.labels[None]),
                    uncertainty=PixelData(data=said.uncertainty[None]),
                )
            )
            sample.set_field(image_uncertainty(said.uncertainty), 'image_uncertainty')
        return samples

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Shares of votes (B, C, H, W) in the size of the network's input."""
        return torch.stack([self._say(image, {}).shares for image in inputs])

    def _say(self, image: Tensor, meta: dict[str, Any]) -> Said:
        maps = [m[0] for m in self.extract_feat(image[None])]
        size = (image.shape[-2], image.shape[-1])
        left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        box = (top, left, size[0] - top - bottom, size[1] - left - right)
        out = tuple(meta.get('ori_shape', box[2:])[:2])
        smaller = min(out, box[2:], key=lambda shape: shape[0] * shape[1])
        said = resized(self.decode_head.say(maps, size, box, smaller), out)
        if meta.get('flip'):
            dims = [-1] if meta['flip_direction'] == 'horizontal' else [-2]
            said = Said(said.shares.flip(dims), said.labels.flip(dims), said.uncertainty.flip(dims))
        return said


def resized(said: Said, size: tuple[int, int]) -> Said:
    """The same answer in another size (H, W): shares and uncertainty bilinearly, labels by the largest share."""
    if said.labels.shape == size:
        return said
    maps = torch.cat([said.shares, said.uncertainty[None]])
    maps = F.interpolate(maps[None], size, mode='bilinear', align_corners=False)[0]
    return Said(maps[:-1], maps[:-1].argmax(0), maps[-1])

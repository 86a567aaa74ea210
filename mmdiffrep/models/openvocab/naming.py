"""Naming: which classes are asked for, and their text embeddings. Holds the text encoder outside the module tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdiffrep.models.frozen import differs, digest
from mmdiffrep.openvocab.text_bank import TextBank, TextBanks
from mmdiffrep.openvocab.text_encoders import build_text_encoder
from mmdiffrep.openvocab.vocabulary import Vocabulary


class Naming(nn.Module):
    """The vocabulary trained on, the current one, and a text bank for each that is asked for.

    Args:
        vocabulary: what is trained on; ValueError unless things come first, as the labels of the data do.
        encoder: of the text, see :func:`build_text_encoder`.
        templates: prompts that a name is put into.
        cache_dir: folder in which embeddings are kept between runs.
        held_out: names left out of the vocabulary to train on.

    The buffer ``encoder_digest`` (SHA-256 of the encoder's fingerprint) goes into checkpoints and is compared when one is loaded.
    """

    encoder_digest: Tensor

    def __init__(
        self,
        vocabulary: Any,
        encoder: Mapping[str, Any],
        templates: Any = 'none',
        cache_dir: str | None = None,
        held_out: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.trained = Vocabulary.parse(vocabulary)
        if held_out:
            self.trained = self.trained.without(held_out)
        if list(self.trained.order) != sorted(self.trained.order):
            raise ValueError(
                'the vocabulary to train on has stuff before things, while labels count things first: sort it (and the data '
                "set's classes) so"
            )
        self.current = self.trained
        self.encoder = build_text_encoder(encoder)
        self.channels = self.encoder.width
        self._banks = TextBanks(self.encoder, templates, cache_dir)
        self._on_device: dict[tuple[Vocabulary, str], TextBank] = {}
        self.register_buffer('encoder_digest', digest(self.encoder.fingerprint))

    def set(self, source: Any) -> Vocabulary:
        self.current = self.trained if source is None else Vocabulary.parse(source)
        return self.current

    def parse(self, source: Any) -> Vocabulary:
        """An image's own vocabulary, or the current one for None."""
        return self.current if source is None else Vocabulary.parse(source)

    def check_trained(self, given: Any) -> None:
        """ValueError where an image's labels are of another vocabulary than the one that the model is trained on."""
        if given is None or given is self.trained:
            return
        given = Vocabulary.parse(given)
        if given.categories != self.trained.categories:
            differs = sorted(set(given.names) ^ set(self.trained.names)) or ['their order or kind']
            raise ValueError(
                f"the data set's vocabulary ({len(given)} classes) is not the one that the model is trained on "
                f'({len(self.trained)}); they differ in {differs[:6]}. Give model.vocabulary and the data set the same'
            )

    def bank(self, vocabulary: Vocabulary, device: torch.device | str) -> TextBank:
        key = (vocabulary, str(device))
        if key not in self._on_device:
            if len(self._on_device) >= 16:
                self._on_device.pop(next(iter(self._on_device)))
            self._on_device[key] = self._banks(vocabulary).to(device)
        return self._on_device[key]

    def training_bank(self, device: torch.device | str) -> TextBank:
        return self.bank(self.trained, device)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (N, D) of texts as they are."""
        return self.encoder(list(texts))

    @torch.no_grad()
    def start_void(self, void: nn.Parameter) -> None:
        """Let the learned void embedding begin as the empty text's, where the encoder has one."""
        empty = self._banks(self.trained).void
        if bool(empty.any()):
            void.copy_(empty)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if differs(state_dict, prefix + 'encoder_digest', self.encoder_digest):
            raise ValueError(
                'this checkpoint was trained with another text encoder than the config names now '
                f'({self.encoder.fingerprint[:60]}): give the one in model.text that it was trained with'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Naming:
        """A copy (an EMA, say) has buffers of its own and shares the encoder and the banks."""
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update(self.__dict__)
        clone._buffers = {name: value.clone() for name, value in self._buffers.items()}  # type: ignore[union-attr]
        return clone

"""PromptHook: each image's own prompt, from its data sample to the network."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from mmdiffrep.registry import HOOKS


@HOOKS.register_module()
class PromptHook(Hook):
    """Tells the model's DiffusionBackbones one prompt an image in each iteration of training, validation and test.

    The denoiser needs ``keep_text_encoder=True``. Something in the pipeline must set ``results[key]``.

    Args:
        key: where an image's prompt is in its data sample's ``metainfo``.
    """

    def __init__(self, key: str = 'prompt') -> None:
        self.key = key

    def _before_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, mode: str = 'train'
    ) -> None:
        prompts = [self._prompt(sample) for sample in data_batch['data_samples']]
        for backbone in find_backbones(runner.model):
            backbone.set_prompts(prompts)

    def _after_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        for backbone in find_backbones(runner.model):
            backbone.set_prompts(None)

    def _prompt(self, sample: Any) -> str:
        prompt = sample.metainfo.get(self.key)
        if not isinstance(prompt, str):
            raise ValueError(
                f'PromptHook: metainfo[{self.key!r}] of {sample.metainfo.get("img_path", "an image")} is {prompt!r}; a string is '
                f'needed. Add {self.key!r} to the meta_keys of PackSegInputs (or PackDetInputs), and let something before it set '
                f'results[{self.key!r}]. The sample has {sorted(sample.metainfo_keys())}'
            )
        return prompt


def find_backbones(model: Any) -> list[Any]:
    """The DiffusionBackbones in a model. ValueError if there is none."""
    from mmdiffrep.models.backbones import DiffusionBackbone

    model = model.module if is_model_wrapper(model) else model
    found = [module for module in model.modules() if isinstance(module, DiffusionBackbone)]
    if not found:
        raise ValueError(
            f'PromptHook: {type(model).__name__} has no mmdiffrep.DiffusionBackbone, so there is no network to tell a prompt'
        )
    return found

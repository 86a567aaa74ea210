"""The text tower of an open_clip model as transformers' ``CLIPTextModel``, which Stable Diffusion pipelines take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .clip import load_clip
from .tokenizer import save_tokenizer

# a block of open_clip, and of transformers; attention's input projections are stacked in the former
BLOCK = {
    'ln_1': 'layer_norm1',
    'ln_2': 'layer_norm2',
    'attn.out_proj': 'self_attn.out_proj',
    'mlp.c_fc': 'mlp.fc1',
    'mlp.c_proj': 'mlp.fc2',
}


def clip_text_model(model: nn.Module) -> nn.Module:
    """A ``CLIPTextModel`` in eval mode, fp32, with the weights of an ``open_clip.CLIP`` (or ``CustomTextCLIP``).

    ``last_hidden_state`` (B, L, D) is open_clip's after its final norm, ``pooler_output`` (B, D) that at the end of the text, before
    ``text_projection``, which transformers keeps elsewhere.

    Raises:
        ValueError: the tower has something that ``CLIPTextModel`` has not.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    tower: Any = getattr(model, 'text', model)
    _check(tower)
    blocks = tower.transformer.resblocks
    width = tower.token_embedding.embedding_dim
    vocabulary = tower.token_embedding.num_embeddings
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=blocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        max_position_embeddings=len(tower.positional_embedding),
        projection_dim=_projection(tower, width),
        hidden_act=_activation(blocks[0].mlp.gelu),
        layer_norm_eps=tower.ln_final.eps,
        bos_token_id=vocabulary - 2,
        eos_token_id=_end_of_text(tower, vocabulary),
        pad_token_id=_end_of_text(tower, vocabulary),
    )
    with torch.random.fork_rng(devices=[]):  # its random weights are replaced
        text_model = CLIPTextModel(config)
    wanted = text_model.state_dict()
    # transformers before release 5 puts 'text_model.' in front
    prefix = 'text_model.' if any(name.startswith('text_model.') for name in wanted) else ''
    state = {prefix + name: value.detach().float().cpu() for name, value in _renamed(tower).items()}
    text_model.load_state_dict(
        state | {n: v for n, v in wanted.items() if n.endswith('position_ids')}
    )
    return text_model.eval()


def save_text_encoder(name: str | Path, folder: str | Path, pretrained: str | None = None) -> None:
    """``folder/text_encoder`` and ``folder/tokenizer`` of a CLIP, as a Stable Diffusion folder has them.

    Args:
        name, pretrained: see :func:`~mmdiffrep.openvocab.clip.load_clip`.
    """
    model, _, tokenizer = load_clip(name, pretrained)
    if not hasattr(tokenizer, 'tokenizer'):
        from .tokenizer import build_tokenizer  # CLIP's whole vocabulary

        tokenizer = build_tokenizer(context_length=tokenizer.context_length)
    folder = Path(folder)
    clip_text_model(model).save_pretrained(folder / 'text_encoder')
    save_tokenizer(tokenizer, folder / 'tokenizer')


def _renamed(tower: Any) -> dict[str, Tensor]:
    """transformers' names -> weights."""
    state = {
        'embeddings.token_embedding.weight': tower.token_embedding.weight,
        'embeddings.position_embedding.weight': tower.positional_embedding,
        'final_layer_norm.weight': tower.ln_final.weight,
        'final_layer_norm.bias': tower.ln_final.bias,
    }
    for number, block in enumerate(tower.transformer.resblocks):
        for old, new in BLOCK.items():
            for kind in ('weight', 'bias'):
                state[f'encoder.layers.{number}.{new}.{kind}'] = getattr(
                    block.get_submodule(old), kind
                )
        for kind in ('weight', 'bias'):
            parts = getattr(block.attn, f'in_proj_{kind}').chunk(3)
            for letter, part in zip('qkv', parts):
                state[f'encoder.layers.{number}.self_attn.{letter}_proj.{kind}'] = part
    return state


def _check(tower: Any) -> None:
    """ValueError for what ``CLIPTextModel`` cannot do."""
    problems = []
    if not hasattr(tower, 'token_embedding'):
        raise ValueError(
            f"{type(tower).__name__} is not open_clip's own text transformer, so that it cannot be converted"
        )
    if tower.attn_mask is None:
        problems.append('no_causal_mask=True')
    if getattr(tower, 'cls_emb', None) is not None:
        problems.append('embed_cls=True')
    pool = _pool_type(tower)
    if pool not in ('argmax', 'eos'):
        problems.append(f'pool_type={pool!r}')
    known = {f'{old}.{kind}' for old in BLOCK for kind in ('weight', 'bias')} | {
        'attn.in_proj_weight',
        'attn.in_proj_bias',
    }
    extra = set(tower.transformer.resblocks[0].state_dict()) - known
    if extra:
        problems.append(f'blocks with {sorted(extra)}')
    if problems:
        raise ValueError(
            f"transformers' CLIPTextModel has no equal of this text tower's {', '.join(problems)}; allowed: causal attention, "
            "plain blocks, pool_type 'argmax' or 'eos'"
        )


def _pool_type(tower: Any) -> str:
    return getattr(tower, 'text_pool_type', None) or tower.pool_type


def _end_of_text(tower: Any, vocabulary: int) -> int:
    """The token whose place is pooled."""
    if _pool_type(tower) == 'argmax':
        return vocabulary - 1  # the highest there is
    end = getattr(tower, 'text_eos_id', None)
    end = tower.eos_id if end is None else end
    if end == 2:
        raise ValueError(
            "pool_type='eos' with eos_id=2, which transformers takes for pool_type='argmax': set the tokenizer's own eos_id"
        )
    return end


def _activation(module: nn.Module) -> str:
    if type(module).__name__ == 'QuickGELU':
        return 'quick_gelu'
    if isinstance(module, nn.GELU):
        return 'gelu' if module.approximate == 'none' else 'gelu_pytorch_tanh'
    raise ValueError(
        f"transformers' CLIPTextModel is not given the activation {module}; allowed: GELU, QuickGELU"
    )


def _projection(tower: Any, width: int) -> int:
    projection = tower.text_projection
    if projection is None:
        return width
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

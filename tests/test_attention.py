"""Attention probabilities, against diffusers' own slow processor and a loop; taps that are tokens."""

import copy
import math

import pytest
import torch

from mmdiffrep.diffusion.attention import attention_probs
from mmdiffrep.diffusion.condition import Condition

pytestmark = pytest.mark.usefixtures('traces_once')
BLOCK = 'attentions.0.transformer_blocks.0'
SELF, CROSS = f'down_blocks.1.{BLOCK}.attn1', f'down_blocks.1.{BLOCK}.attn2'


@pytest.fixture(scope='module')
def sd(small_sd_config):
    from mmdiffrep.diffusion.stable_diffusion import StableDiffusion

    return StableDiffusion(config=small_sd_config)


@pytest.fixture(scope='module')
def dit(small_dit_config):
    from mmdiffrep.diffusion.dit import DiT

    return DiT(config=small_dit_config)


def latents(n, size, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, *size, generator=g), torch.randint(1000, (n,), generator=g)


def words(n, count):
    return torch.randn(n, count, 12, generator=torch.Generator().manual_seed(4))


def scores(network, path, call):
    """What diffusers' unfused processor computes in one attention: (B, heads, N, M)."""
    from diffusers.models.attention_processor import AttnProcessor

    network = copy.deepcopy(network)
    attention = network.get_submodule(path)
    attention.set_processor(AttnProcessor())
    seen, original = [], attention.get_attention_scores

    def keep(*args):
        seen.append(original(*args))
        return seen[-1]

    attention.get_attention_scores = keep
    call(network)
    return seen[0].unflatten(0, (-1, attention.heads))


# ---- probabilities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(8, 8), (4, 12), (12, 4), (10, 6)])
@pytest.mark.parametrize(
    'path, stride, count', [(SELF, 2, None), (CROSS, 2, 5), (f'mid_block.{BLOCK}.attn2', 4, 1)]
)
def test_probabilities_of_a_unet(sd, size, path, stride, count):
    x, t = latents(2, size)
    text = words(2, count or 3)
    full = scores(sd.unet, path, lambda net: net(x, t, encoder_hidden_states=text))
    h, w = (-(-side // stride) for side in size)  # levels of an odd side round up
    count = count or h * w
    assert full.shape == (2, full.shape[1], h * w, count) and full.shape[1] > 1
    found = sd.features(x, t, Condition(tokens=text), [f'{path}:head_probs', f'{path}:probs', path])
    assert list(found) == [f'{path}:probs', f'{path}:head_probs', path]
    mean = full.mean(1).reshape(2, h, w, count).permute(0, 3, 1, 2)
    torch.testing.assert_close(found[f'{path}:probs'], mean)
    heads = full.permute(0, 1, 3, 2).reshape(2, -1, h, w)  # channel = head · M + key
    torch.testing.assert_close(found[f'{path}:head_probs'], heads)
    torch.testing.assert_close(found[f'{path}:probs'].sum(1), torch.ones(2, h, w))


def test_probabilities_of_other_networks(dit, sd, tiny_denoiser):
    x, t = latents(1, (8, 12))
    path = 'transformer_blocks.1.attn1'
    own = dit.transformer.transformer_blocks[1]

    def until(net):
        hidden = net.pos_embed(x)
        for block in net.transformer_blocks[:2]:
            hidden = block(hidden, timestep=t, class_labels=torch.tensor([10]))

    full = scores(dit.transformer, path, until)
    assert full.shape == (1, own.attn1.heads, 24, 24)
    got = dit.features(x, t, taps=[f'{path}:probs'])[f'{path}:probs']
    torch.testing.assert_close(got, full.mean(1).reshape(1, 4, 6, 24).permute(0, 3, 1, 2))

    pixel, path = tiny_denoiser(), 'mid_block.attentions.0'
    image = torch.randn(1, 3, 16, 24)
    full = scores(pixel.unet, path, lambda net: net(image, t))
    got = pixel.features(image, t, taps=[f'{path}:head_probs'])[f'{path}:head_probs']
    torch.testing.assert_close(got, full.permute(0, 1, 3, 2).reshape(1, -1, 4, 6))

    path = 'vae.encoder.mid_block.attentions.0'
    full = scores(sd.network, path, lambda net: net.vae.encode(image))
    got = sd.encode_tapped(image, [f'{path}:probs'], latent=False)[1][f'{path}:probs']
    torch.testing.assert_close(got, full.mean(1).reshape(1, 8, 12, 96).permute(0, 3, 1, 2))


def loop(query, key, scale):
    """softmax by hand, one number at a time: [b][head][n][m]."""
    out = torch.zeros(*query.shape[:3], key.shape[2], dtype=torch.float64)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for n in range(query.shape[2]):
                row = []
                for m in range(key.shape[2]):
                    dot = sum(
                        float(query[b, h, n, d]) * float(key[b, h, m, d])
                        for d in range(query.shape[3])
                    )
                    row.append(math.exp(scale * dot))
                for m, value in enumerate(row):
                    out[b, h, n, m] = value / sum(row)
    return out.float()


@pytest.mark.parametrize('tile', [1, 43, 84, 85, 1 << 24])  # one query, two, two, …, all
def test_tiles_of_any_size_give_the_same_as_a_loop(tile):
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 5, 4, generator=g), torch.randn(2, 3, 7, 4, generator=g)
    full = loop(query, key, 0.5)
    torch.testing.assert_close(attention_probs(query, key, 0.5, tile_elements=tile), full.mean(1))
    each = attention_probs(query, key, 0.5, average=False, tile_elements=tile)
    assert each.shape == (2, 5, 21)
    for head in range(3):
        torch.testing.assert_close(each[..., head * 7 : head * 7 + 7], full[:, head])


def test_no_more_than_a_tile_exists_at_once(monkeypatch):
    sizes, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, 'softmax', lambda x, dim: sizes.append(x.numel()) or softmax(x, dim)
    )
    attention_probs(torch.zeros(1, 2, 9, 4), torch.zeros(1, 2, 5, 4), 1, tile_elements=40)
    assert sizes == [40, 40, 10]


def test_probabilities_are_fp32_whatever_the_network_is():
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 5, 8, generator=g).bfloat16() for _ in range(2))
    expected = loop(query, key, 0.3).mean(1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = attention_probs(query, key, 0.3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradients_of_probabilities(sd, checkpointing):
    """Of several at once, within and across checkpointed units, against diffusers' processor without checkpointing."""
    x, t = latents(1, (4, 8))
    text = words(1, 3)
    taps = [
        f'{SELF}:probs',
        f'{CROSS}:probs',
        f'mid_block.{BLOCK}.attn2:head_probs',
        'mid_block',
    ]
    denoiser = copy.deepcopy(sd)
    denoiser.unet.requires_grad_(True)
    denoiser.set_checkpointing(checkpointing)
    found = denoiser.features(x, t, Condition(tokens=text), taps)
    assert list(found) == taps
    weights = [
        torch.randn(v.shape, generator=torch.Generator().manual_seed(5)) for v in found.values()
    ]
    sum((w * v).sum() for w, v in zip(weights, found.values())).backward()

    oracle = copy.deepcopy(sd.unet).requires_grad_(True)
    from diffusers.models.attention_processor import AttnProcessor

    seen = {}
    for tap in taps[:3]:
        attention = oracle.get_submodule(tap.partition(':')[0])
        attention.set_processor(AttnProcessor())

        def keep(*args, tap=tap, original=attention.get_attention_scores):
            seen[tap] = original(*args)
            return seen[tap]

        attention.get_attention_scores = keep
    handle = oracle.mid_block.register_forward_hook(lambda _m, _a, out: seen.update(mid_block=out))
    oracle(x, t, encoder_hidden_states=text)
    handle.remove()
    loss = (weights[3] * seen['mid_block']).sum()
    for tap, weight in zip(taps[:3], weights):
        full = seen[tap].unflatten(0, (1, -1))
        maps = full.mean(1) if tap.endswith(':probs') else full.transpose(1, 2).flatten(2)
        loss = loss + (maps.transpose(1, 2).unflatten(2, weight.shape[2:]) * weight).sum()
    loss.backward()
    used = 0
    theirs = dict(oracle.named_parameters())
    for name, p in denoiser.unet.named_parameters():
        used += p.grad is not None
        assert (p.grad is None) == (theirs[name].grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)
    assert used > 50


def test_probabilities_alone_under_checkpointing(sd):
    """The pass stops in no unit that still has to be recomputed."""
    x, t = latents(1, (4, 8))
    grads = []
    for checkpointing in (False, True):
        denoiser = copy.deepcopy(sd)
        denoiser.unet.requires_grad_(True)
        denoiser.set_checkpointing(checkpointing)
        bias = torch.zeros(1, 32, requires_grad=True)
        found = denoiser.features(x, t, Condition(time_bias=bias), [f'{CROSS}:probs'])
        found[f'{CROSS}:probs'].square().sum().backward()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in denoiser.modules())
        grads.append(
            [bias.grad, *(p.grad for p in denoiser.unet.parameters() if p.grad is not None)]
        )
    assert grads[0][0].abs().sum() > 0 and len(grads[0]) == len(grads[1])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_what_cannot_be_tapped_as_probabilities(sd):
    x, t = latents(1, (4, 8))
    with pytest.raises(
        ValueError,
        match=r"tap 'conv_in:probs': a Conv2d is no attention. Name the attention itself",
    ):
        sd.tap('conv_in:head_probs')
    with pytest.raises(ValueError, match=r"to_k:probs': a Linear is no attention"):
        sd.tap(f'{CROSS}.to_k:probs')
    with pytest.raises(ValueError, match='nothing can be added to probabilities'):
        sd.features(x, t, taps=['mid_block'], inject={f'{CROSS}:probs': torch.zeros(1)})
    other = copy.deepcopy(sd)
    other.unet.get_submodule(SELF).fuse_projections()
    with pytest.raises(ValueError, match='projections were fused.*Leave fuse_qkv out'):
        other.tap(f'{SELF}:probs')
    other.unet.get_submodule(CROSS).added_kv_proj_dim = 4
    with pytest.raises(ValueError, match='joins text and image in its keys'):
        other.tap(f'{CROSS}:probs')


def test_a_masked_attention_is_refused(sd):
    x, t = latents(1, (4, 8))
    other = copy.deepcopy(sd)
    call = other.unet.forward
    other.unet.forward = lambda *args, **kwargs: call(
        *args, encoder_attention_mask=torch.ones(1, 77), **kwargs
    )
    with pytest.raises(ValueError, match="':probs' is not offered where the attention is masked"):
        other.features(x, t, taps=[f'{CROSS}:probs'])
    assert other.features(x, t, taps=[f'{SELF}:probs'])


# ---- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['to_k', 'to_v', 'to_k:in', 'to_v:in'])
def test_tokens_of_the_text_have_no_place_in_the_image(sd, name):
    x, t = latents(1, (4, 4))
    with pytest.raises(
        ValueError, match=f"tap '{CROSS}.{name}' reads tokens of the text.*to_q.*:probs"
    ):
        # as many words as places: nothing but the attention itself tells them apart
        sd.features(x, t, Condition(tokens=words(1, 4)), [f'{CROSS}.{name}'])
    assert sd.features(x, t, Condition(tokens=words(1, 4)), [f'{SELF}.{name}'])
    assert f'{CROSS}.{name}' not in sd.tap_info((32, 32)) and f'{SELF}.{name}' in sd.tap_info(
        (32, 32)
    )


def test_a_group_norm_in_an_attention_has_channels_first(tiny_denoiser):
    """As many channels as places: a wrong layout would go unseen."""
    denoiser, tap = tiny_denoiser(), 'down_blocks.1.attentions.0.group_norm'
    x = torch.randn(1, 3, 8, 8)
    seen = []
    handle = denoiser.unet.get_submodule(tap).register_forward_hook(
        lambda _m, _a, out: seen.append(out)
    )
    got = denoiser.features(x, torch.tensor([3]), taps=[tap])[tap]
    handle.remove()
    assert seen[0].shape == (1, 16, 16)
    for y in range(4):
        for z in range(4):
            assert torch.equal(got[0, :, y, z], seen[0][0, :, 4 * y + z])


def test_self_attention_has_a_channel_for_each_place(sd):
    """The number of channels depends on the image: two sizes tell."""
    small, wide = sd.tap_info((32, 32)), sd.tap_info((32, 64))
    assert [i[f'{SELF}:probs'].channels for i in (small, wide)] == [64, 128]
    assert [i[f'{SELF}:head_probs'].channels for i in (small, wide)] == [2 * 64, 2 * 128]
    assert [i[f'{CROSS}:probs'].channels for i in (small, wide)] == [77, 77]

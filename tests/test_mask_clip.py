"""Masks named by CLIP: masked attention and mask pooling, against CLIP's own embeddings and slow versions."""

import copy
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

open_clip = pytest.importorskip('open_clip')

from mmdiffrep.openvocab.clip import build_clip, load_clip  # noqa: E402
from mmdiffrep.openvocab.clip_vit import find_vit, resized_positions  # noqa: E402
from mmdiffrep.openvocab.mask_clip import (  # noqa: E402
    MaskAttentionClip,
    MaskClassifier,
    attention_mask,
)
from mmdiffrep.openvocab.mask_pool import (  # noqa: E402
    MaskPoolClip,
    build_mask_classifier,
    mask_pool,
)

TEXT = dict(context_length=4, vocab_size=10, width=8, heads=1, layers=1)
SIZE, PATCH = 16, 4


def vit(layers=2, **vision):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        vision = dict(
            image_size=SIZE, patch_size=PATCH, width=16, head_width=8, layers=layers, **vision
        )
        return build_clip(dict(embed_dim=6, vision_cfg=vision, text_cfg=TEXT)).eval()


def convnet(**vision):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        tower = dict(
            timm_model_name='convnext_atto', timm_pool='', timm_proj='linear', image_size=64
        )
        return build_clip(dict(embed_dim=6, vision_cfg=tower | vision, text_cfg=TEXT)).eval()


@pytest.fixture(scope='module')
def deep():
    model = vit()
    return model, MaskAttentionClip(model)


@pytest.fixture(scope='module')
def pooling():
    model = convnet()
    return model, MaskPoolClip(model)


def normalised(image):
    mean, std = (
        torch.tensor(getattr(open_clip.constants, f'OPENAI_DATASET_{w}')) for w in ('MEAN', 'STD')
    )
    return (image - mean[:, None, None]) / std[:, None, None]


def own_embedding(model, image):
    with torch.no_grad():
        return F.normalize(model.encode_image(normalised(image)), dim=-1)


def pictures(count=1, size=(SIZE, SIZE), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def masks_like(count, size=(SIZE, SIZE), seed=1):
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed)) ** 8


# ---- masked attention -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('layers', [1, 2, 3])
def test_a_full_mask_gives_clips_own_embedding(layers):
    model = vit(layers)
    classifier = MaskAttentionClip(model)
    images = pictures(2)
    found = classifier(images, [torch.ones(3, SIZE, SIZE), torch.ones(1, 4, 4)])
    wanted = own_embedding(model, images)
    assert [tuple(f.shape) for f in found] == [(3, 6), (1, 6)]
    torch.testing.assert_close(found[0], wanted[:1].expand(3, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], wanted[1:], atol=1e-5, rtol=0)
    assert torch.allclose(found[0].norm(dim=-1), torch.ones(3))
    empty = classifier(images, [torch.zeros(1, SIZE, SIZE)] * 2)
    assert (empty[0] - wanted[0]).abs().max() > 1e-2  # a mask does change it


def test_the_shipped_clip_and_its_own_preprocessing():
    model, preprocess, _ = load_clip('mmdiffrep/toy-clip')
    classifier = MaskAttentionClip(image_size=64)
    assert classifier.logit_scale == pytest.approx(model.logit_scale.detach().exp().item())
    pixels = (
        np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)
    )
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255  # 72 x 96, squashed to 64 x 64
    with torch.no_grad():
        wanted = F.normalize(model.encode_image(preprocess(Image.fromarray(pixels))[None]), dim=-1)
    found = classifier(image, [torch.ones(1, 72, 96)])[0]
    assert (
        F.cosine_similarity(found, wanted).item() > 0.9999
    )  # PIL rounds to whole numbers on the way


def test_outside_a_mask_nothing_counts_in_one_layer():
    """With one block mask tokens see patches that saw nothing else, and the class token, which has seen no patch."""
    classifier = MaskAttentionClip(vit(layers=1))
    image = pictures()
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, 5:7, 9:14] = 0.9  # in patches (1, 2) and (1, 3)
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[4:8, 8:16] = False
    other = torch.where(outside, pictures(seed=9), image)
    assert torch.equal(classifier(image, [mask])[0], classifier(other, [mask])[0])
    inside = image.clone()
    inside[:, :, 4, 8] = 1 - inside[:, :, 4, 8]  # of a covered patch, if not of the mask
    assert (classifier(inside, [mask])[0] - classifier(image, [mask])[0]).abs().max() > 1e-5


def slow(model, image, visible):
    """Blocks by the formula, token by token: what a mask token sees are the class token and visible patches of each layer."""
    visual = model.visual
    with torch.no_grad():
        x = visual._embeds(normalised(image))[0]
        tokens = [x[0].clone() for _ in visible]

        def attend(block, query, keys):
            width, heads = x.shape[1], block.attn.num_heads
            weights, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
            q = block.ln_1(query) @ weights[:width].T + bias[:width]
            k = block.ln_1(keys) @ weights[width : 2 * width].T + bias[width : 2 * width]
            v = block.ln_1(keys) @ weights[2 * width :].T + bias[2 * width :]
            parts = []
            for h in range(heads):
                part = slice(h * width // heads, (h + 1) * width // heads)
                a = (k[:, part] @ q[part] / (width // heads) ** 0.5).softmax(0)
                parts.append(a @ v[:, part])
            y = query + block.attn.out_proj(torch.cat(parts))
            return y + block.mlp(block.ln_2(y))

        for block in visual.transformer.resblocks:
            tokens = [
                attend(block, t, x[torch.cat([torch.tensor([True]), seen])])
                for t, seen in zip(tokens, visible)
            ]
            x = block(x[None])[0]
        return F.normalize(visual.ln_post(torch.stack(tokens)) @ visual.proj, dim=-1)


def test_against_a_slow_version(deep):
    model, classifier = deep
    image, masks = pictures(), masks_like(5)
    masks[4] = 0.2  # covers nothing
    patches = masks.unflatten(1, (4, PATCH)).unflatten(3, (4, PATCH)).amax((2, 4)).flatten(1)
    visible = patches >= 0.5
    assert 0.2 < visible.float().mean() < 0.8 and not visible[4].any()
    found = classifier(image, [masks])[0]
    torch.testing.assert_close(found, slow(model, image, visible), atol=1e-5, rtol=0)
    assert torch.isfinite(found).all()


def test_ordinary_tokens_do_not_notice_masks(deep):
    _, classifier = deep
    tower = classifier.tower
    with torch.no_grad():
        tokens = tower.tokens(normalised(pictures(2)))
        ordinary = tokens.shape[1]
        results = []
        for seed in (1, 2):
            visible = (
                torch.rand(2, 3, ordinary - 1, generator=torch.Generator().manual_seed(seed)) > 0.5
            )
            added = torch.randn(
                2, 3, tokens.shape[2], generator=torch.Generator().manual_seed(seed)
            )
            results.append(tower.blocks(torch.cat([tokens, added], 1), attention_mask(visible)))
        alone = tower.blocks(tokens, torch.zeros(2, ordinary, ordinary))
    first, second = results
    assert torch.equal(first[:, :ordinary], second[:, :ordinary])
    assert not torch.allclose(first[:, ordinary:], second[:, ordinary:])
    torch.testing.assert_close(first[:, :ordinary], alone, atol=1e-5, rtol=0)


def test_the_attention_mask():
    visible = torch.tensor([[[True, False, True], [False, False, False]]])
    sees = attention_mask(visible)[0] == 0
    ordinary = [[1, 1, 1, 1, 0, 0]] * 4
    assert sees.int().tolist() == [*ordinary, [1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    weights = (torch.randn(6, 6) + attention_mask(visible)[0]).softmax(-1)
    assert not weights[~sees].any() and torch.isfinite(weights).all()


def test_batches_and_chunks_equal_one_by_one(deep):
    model, classifier = deep
    images = pictures(4)
    masks = [masks_like(n, seed=n) for n in (5, 0, 2, 7)]
    together = classifier(images, masks)
    assert [len(t) for t in together] == [5, 0, 2, 7]
    for image, mask, wanted in zip(images, masks, together):
        alone = classifier(image[None], [mask])[0]
        torch.testing.assert_close(alone, wanted, atol=1e-5, rtol=0)
    chunked = MaskAttentionClip(model, masks_at_once=2)(images, masks)
    for some, wanted in zip(chunked, together):
        torch.testing.assert_close(some, wanted, atol=1e-5, rtol=0)
    assert [t.shape for t in classifier(images[:1], [masks[1]])] == [(0, 6)]


def test_masks_follow_the_resize_of_their_image(deep):
    """A list of images of several sizes; the left half of the picture is the left half of CLIP's patches."""
    _, classifier = deep
    seen = []
    inner = classifier.covered
    sizes = [(32, 48), (20, 10)]
    images = [pictures(1, size)[0] for size in sizes]
    halves = []
    for height, width in sizes:
        half = torch.zeros(1, height, width)
        half[..., : width // 2] = 1
        halves.append(half)
    halves[0] = F.avg_pool2d(halves[0], 4)  # at stride 4
    try:
        classifier.covered = lambda m: seen.append(inner(m)) or seen[-1]
        found = classifier(images, halves)
    finally:
        del classifier.covered
    left = torch.zeros(4, 4, dtype=torch.bool)
    left[:, :2] = True
    assert torch.equal(seen[1][0].view(4, 4), left)
    assert len(seen) == 2 and [f.shape for f in found] == [(1, 6)] * 2
    assert torch.equal(seen[0][0].view(4, 4)[:, [0, 1, 3]], left[:, [0, 1, 3]])


def test_positions_for_another_size():
    model = vit(1)
    classifier = MaskAttentionClip(model, image_size=(16, 24))
    wide = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        target = build_clip(
            dict(
                embed_dim=6,
                text_cfg=TEXT,
                vision_cfg=dict(
                    image_size=(16, 24), patch_size=PATCH, width=16, head_width=8, layers=1
                ),
            )
        ).eval()
    state = wide.state_dict()
    state['visual.positional_embedding'] = resized_positions(
        state['visual.positional_embedding'], (4, 4), (4, 6)
    )
    target.load_state_dict(state)
    image = pictures(1, (16, 24))
    found = classifier(image, [torch.ones(1, 4, 6)])[0]
    torch.testing.assert_close(found, own_embedding(target, image), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r'image_size=18 does not fit; .*multiples of 4 x 4'):
        MaskAttentionClip(model, image_size=18)


def test_resized_positions_are_open_clips():
    positions = torch.randn(1 + 16, 8)
    state = {'visual.positional_embedding': positions.clone()}
    stand_in = nn.Module()
    stand_in.visual = nn.Module()
    stand_in.visual.grid_size = (6, 6)
    open_clip.model.resize_pos_embed(state, stand_in)
    torch.testing.assert_close(
        resized_positions(positions, (4, 4), (6, 6)),
        state['visual.positional_embedding'],
        atol=1e-6,
        rtol=0,
    )


# ---- transformers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def transformers_clip():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH, projection_dim=6, initializer_factor=3.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return CLIPVisionModelWithProjection(config).eval()


def test_transformers(transformers_clip, tmp_path):
    classifier = MaskAttentionClip(transformers_clip)
    image = pictures(2)
    with torch.no_grad():
        wanted = F.normalize(transformers_clip(normalised(image)).image_embeds, dim=-1)
    found = classifier(image, [torch.ones(2, SIZE, SIZE)] * 2)
    for one, own in zip(found, wanted):
        torch.testing.assert_close(one, own.expand(2, -1), atol=1e-5, rtol=0)
    empty = classifier(image, [torch.zeros(1, SIZE, SIZE)] * 2)[0]
    assert torch.isfinite(empty).all() and (empty - wanted[0]).abs().max() > 1e-3
    assert classifier.logit_scale == 100
    transformers_clip.save_pretrained(tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    again = MaskAttentionClip(tmp_path, library='transformers')
    assert again.mean == (0.5, 0.5, 0.5) and again.fingerprint != classifier.fingerprint
    again.mean = classifier.mean
    masks = [masks_like(3)] * 2
    assert torch.equal(again(image, masks)[1], classifier(image, masks)[1])


def test_masked_attention_is_the_same_in_both_libraries(transformers_clip):
    """The weights of one in the other: quick GELU and all."""
    model = vit(2)
    model.visual.load_state_dict(_open_clip_state(transformers_clip))
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu = open_clip.transformer.QuickGELU()
    image, masks = pictures(), [masks_like(6)]
    torch.testing.assert_close(
        MaskAttentionClip(model)(image, masks)[0],
        MaskAttentionClip(transformers_clip)(image, masks)[0],
        atol=1e-5,
        rtol=0,
    )


def _open_clip_state(model):
    names = {
        'embeddings.patch_embedding': 'conv1', 'embeddings.class_embedding': 'class_embedding', 'pre_layrnorm': 'ln_pre',
        'embeddings.position_embedding.weight': 'positional_embedding', 'post_layernorm': 'ln_post',
        'encoder.layers': 'transformer.resblocks', 'layer_norm': 'ln_', 'self_attn': 'attn', 'fc1': 'c_fc', 'fc2': 'c_proj',
    }  # fmt: skip
    found = {'proj': model.visual_projection.weight.T}
    for key, value in model.vision_model.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        found[key] = value
    for start in {re.sub(r'q_proj.*', '', key) for key in found if 'q_proj' in key}:
        for kind in ('weight', 'bias'):
            found[f'{start}in_proj_{kind}'] = torch.cat(
                [found.pop(f'{start}{c}_proj.{kind}') for c in 'qkv']
            )
    return found


# ---- mask pooling -----------------------------------------------------------------------------------------------


def test_pooling_a_full_mask_gives_clips_own_embedding(pooling):
    for model, classifier in (pooling, (mlp := convnet(timm_proj='mlp'), MaskPoolClip(mlp))):
        found = classifier(pictures(2, (64, 96)), [torch.ones(2, 64, 96), torch.ones(1, 16, 24)])
        wanted = own_embedding(model, pictures(2, (64, 96)))
        torch.testing.assert_close(found[0], wanted[:1].expand(2, -1), atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1], wanted[1:], atol=1e-5, rtol=0)
        assert (classifier.width, classifier.stride) == (6, 32)


def test_pooling_against_a_slow_version(pooling):
    model, classifier = pooling
    image = pictures(1, (64, 96))
    cells = torch.tensor([[1, 0, 0], [1, 1, 0]]).bool()
    mask = cells.repeat_interleave(32, 0).repeat_interleave(32, 1)[None].float()
    with torch.no_grad():
        maps = model.visual.trunk.forward_features(normalised(image))[0]
        pooled = torch.stack(
            [maps[:, y, x] for y in range(2) for x in range(3) if cells[y, x]]
        ).mean(0)
        trunk = model.visual.trunk
        wanted = model.visual.head(
            F.layer_norm(pooled, pooled.shape, trunk.head.norm.weight, trunk.head.norm.bias, 1e-6)
        )
    # the resize blurs borders, so the mask of whole cells is given at the cells' own resolution
    found = classifier(image, [cells[None].float()])[0]
    torch.testing.assert_close(found, F.normalize(wanted, dim=-1)[None], atol=1e-5, rtol=0)
    torch.testing.assert_close(classifier(image, [mask])[0], found, atol=1e-5, rtol=0)


def test_mask_pool_weights():
    features = torch.arange(8.0).view(2, 2, 2)
    masks = torch.tensor([[[1, 0.6], [0.4, 0]], [[0.4, 0.1], [0, 0]], [[0, 0], [0, 0]]])
    wanted = [
        [0.5, 4.5],
        [0.2, 4.2],
        [0, 0],
    ]  # cells that reach a half; by probability where none does; nothing
    torch.testing.assert_close(mask_pool(features, masks), torch.tensor(wanted))


def test_pooling_sizes_batches_and_nothing(pooling):
    model, classifier = pooling
    images = [pictures(1, (70, 90))[0], pictures(1, (64, 64), seed=3)[0]]
    masks = [masks_like(3, (35, 45)), torch.zeros(1, 16, 16)]
    found = classifier(images, masks)
    assert [f.shape for f in found] == [(3, 6), (1, 6)] and all(
        torch.isfinite(f).all() for f in found
    )
    torch.testing.assert_close(classifier(images[:1], masks[:1])[0], found[0], atol=1e-5, rtol=0)
    assert classifier(images[1:], [torch.zeros(0, 64, 64)])[0].shape == (0, 6)
    resized = F.interpolate(images[0][None], (64, 96), mode='bicubic', antialias=True).clamp(0, 1)
    full = classifier(images[:1], [torch.ones(1, 70, 90)])[0]  # rounded to multiples of 32
    torch.testing.assert_close(full, own_embedding(model, resized), atol=1e-5, rtol=0)
    square = MaskPoolClip(model, image_size=64)(
        images, [torch.ones(1, 70, 90), torch.ones(1, 8, 8)]
    )
    torch.testing.assert_close(square[1], own_embedding(model, images[1][None]), atol=1e-5, rtol=0)


# ---- both -------------------------------------------------------------------------------------------------------


def test_frozen_and_outside_of_models(deep, pooling):
    for model, classifier in (deep, pooling):
        assert all(p.requires_grad for p in model.parameters())  # the caller's own is left alone
        holder = nn.Linear(2, 2)
        holder.classifier = classifier
        assert len(holder.state_dict()) == 2 and len(list(holder.modules())) == 1
        holder.train()
        assert not any(m.training for m in classifier.module.modules())
        assert not any(p.requires_grad for p in classifier.module.parameters())
        assert copy.deepcopy(holder).classifier is classifier
        image = pictures(1, (64, 64)).requires_grad_()
        mask = torch.ones(1, 64, 64, requires_grad=True)
        assert not classifier(image, [mask])[0].requires_grad
        with torch.autocast('cpu', torch.bfloat16):
            low = classifier(image.bfloat16(), [mask])[0]
        assert low.dtype == torch.float32
        assert classifier.to('cpu') is classifier and classifier.device.type == 'cpu'


def test_fingerprints(deep):
    model, classifier = deep
    assert MaskAttentionClip(model).fingerprint == classifier.fingerprint
    assert MaskAttentionClip(model, image_size=32).fingerprint != classifier.fingerprint
    other = copy.deepcopy(model)
    other.visual.ln_post.bias.data[0] += 1e-3
    assert MaskAttentionClip(other).fingerprint != classifier.fingerprint


def test_building(deep):
    assert build_mask_classifier(None) is None and build_mask_classifier(deep[1]) is deep[1]
    built = build_mask_classifier(dict(kind='attention', name=deep[0], masks_at_once=3))
    assert isinstance(built, MaskAttentionClip) and built.masks_at_once == 3
    assert isinstance(build_mask_classifier(dict(kind='pool', name=convnet())), MaskPoolClip)
    with pytest.raises(ValueError, match="kind='pol' .*allowed: .*'attention', 'pool'"):
        build_mask_classifier(dict(kind='pol'))
    with pytest.raises(ValueError, match='does not fit MaskAttentionClip: .*sise'):
        build_mask_classifier(dict(kind='attention', sise=3))


def test_input_errors(deep):
    classifier = deep[1]
    image, mask = pictures(), torch.ones(1, SIZE, SIZE)
    cases = [
        (image[0], [mask], r'images have shape \(3, 16, 16\)'),
        (
            image,
            [mask[0]],
            r'masks of image 0 have shape \(16, 16\); needed: \(Q, h, w\).*mask\[None\]',
        ),
        (image, mask, r'1 images with a tensor \(1, 16, 16\) for masks; needed: a list'),
        (image, [mask, mask], '1 images with 2 for masks'),
        (
            image,
            [torch.ones(1, 16, 24)],
            'masks of 16 x 24 do not cover image 0, which has 16 x 16.*img_shape',
        ),
        (image * 255, [mask], r'image 0: values in .*divide pixels by 255'),
        (image, [mask * 7 - 3], 'masks of image 0: values in .*sigmoid'),
        (image, [mask * float('nan')], 'masks of image 0: values in .*nan'),
        ((image * 255).byte(), [mask], r'image 0 is torch.uint8 .*allowed: float'),
    ]
    for images, masks, message in cases:
        with pytest.raises(ValueError, match=message):
            classifier(images, masks)
    classifier(pictures(1, (33, 47)), [torch.ones(1, 9, 12)])  # stride 4, rounded up


def test_towers_that_do_not_fit(transformers_clip, tmp_path):
    with pytest.raises(ValueError, match='TimmModel of ConvNeXt.*MaskPoolClip'):
        MaskAttentionClip(convnet())
    for options, what in (
        (
            dict(attentional_pool=True, attn_pooler_heads=2),
            r'attention pooling \(attentional_pool\)',
        ),
        (dict(pool_type='avg'), "pool_type='avg'"),
    ):
        with pytest.raises(ValueError, match=f'reads the class token, .* has {what}.*MaskPoolClip'):
            MaskAttentionClip(vit(1, **options))
    with pytest.raises(
        ValueError, match='by timm, this CLIP has a VisionTransformer.*MaskAttentionClip'
    ):
        MaskPoolClip(vit(1))
    resnet = build_clip(
        dict(
            embed_dim=8,
            text_cfg=TEXT,
            vision_cfg=dict(layers=[1, 1, 1, 1], width=8, image_size=32, head_width=8),
        )
    )
    for kind in (MaskPoolClip, MaskAttentionClip):
        with pytest.raises(ValueError, match='this CLIP has a ModifiedResNet'):
            kind(resnet)
    with pytest.raises(ValueError, match='MaskAttentionClip with a ViT'):
        MaskPoolClip(convnet(timm_pool='abs_attn', timm_proj=''))
    with pytest.raises(ValueError, match='mask pooling .*VisionTransformer'):
        MaskPoolClip(convnet(timm_model_name='vit_tiny_patch16_224', timm_pool='token'))
    with pytest.raises(ValueError, match='Linear is no CLIP image model'):
        MaskAttentionClip(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="library='hf' is unknown"):
        find_vit('ViT-B-32', library='hf')
    with pytest.raises(FileNotFoundError, match='no transformers CLIP at .*save_pretrained'):
        MaskAttentionClip(tmp_path, library='transformers')
    with pytest.raises(ValueError, match="leave pretrained='openai' out"):
        MaskAttentionClip(tmp_path, 'openai', library='transformers')
    with pytest.raises(ValueError, match='masks_at_once=0'):
        MaskAttentionClip(masks_at_once=0)
    with pytest.raises(TypeError, match='abstract'):
        MaskClassifier()

"""AttentionFusion from its weights alone: the MLP's width and GELU, defaults, half precision, constant maps, other sizes."""

import math

import pytest
import torch
import torch.nn.functional as F

import mmdiffrep  # noqa: F401
from mmdiffrep.models.classification import AttentionFusion

SHAPES = [(4, 7, 5), (6, 3, 3)]


def fusion(**kwargs):
    """Two taps, two timesteps; every parameter is moved away from where it starts."""
    settings = dict(num_timesteps=2, sizes=[(7, 5), 3], dim=12, heads=3, pool=4)
    torch.manual_seed(0)
    settings.update(kwargs)
    model = AttentionFusion(5, [4, 6] * settings['num_timesteps'], **settings).eval()
    g = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data = p.data + 0.3 * torch.randn(p.shape, generator=g)
    return model


def random_maps(batch=3, steps=2, shapes=SHAPES):
    g = torch.Generator().manual_seed(2)
    return [torch.randn(batch, *shape, generator=g) for shape in shapes * steps]


def normed(x, weight, bias):
    mean = x.mean()
    return (x - mean) / ((x - mean) ** 2).mean().add(1e-5).sqrt() * weight + bias


def mlp(x, w, name):
    """Linear, GELU(x) = x·(1 + erf(x/√2))/2, linear."""
    hidden = w[f'{name}.0.weight'] @ x + w[f'{name}.0.bias']
    hidden = torch.stack([h * (1 + math.erf(h / math.sqrt(2))) / 2 for h in hidden])
    return w[f'{name}.2.weight'] @ hidden + w[f'{name}.2.bias']


def class_token(maps, w, sizes, heads):
    """Of one image at one timestep, in double precision, from a state dict."""
    tokens = [w['cls'].flatten()]
    for k, (m, size) in enumerate(zip(maps, sizes)):
        m = normed(F.adaptive_avg_pool2d(m, size), w[f'norms.{k}.weight'], w[f'norms.{k}.bias'])
        kernel = w[f'projections.{k}.weight'].flatten(1)
        tokens += [kernel @ place + w[f'projections.{k}.bias'] for place in m.flatten(1).T]
    for b in range(2):
        n1, n2 = ((w[f'blocks.{b}.norm{i}.weight'], w[f'blocks.{b}.norm{i}.bias']) for i in (1, 2))
        wq, wk, wv = w[f'blocks.{b}.qkv.weight'].chunk(3)
        x = torch.stack([normed(token, *n1) for token in tokens])
        attended = []
        for q, k, v in zip(wq.chunk(heads), wk.chunk(heads), wv.chunk(heads)):
            weights = ((x @ q.T) @ (x @ k.T).T / len(q) ** 0.5).exp()
            attended.append(weights / weights.sum(1, keepdim=True) @ (x @ v.T))
        out = torch.cat(attended, 1) @ w[f'blocks.{b}.out.weight'].T + w[f'blocks.{b}.out.bias']
        tokens = [token + o for token, o in zip(tokens, out)]
        tokens = [token + mlp(normed(token, *n2), w, f'blocks.{b}.mlp') for token in tokens]
    return tokens[0]


def by_hand(model, maps, heads=3, sizes=((4, 4), (3, 3))):
    w = {name: value.double() for name, value in model.state_dict().items()}
    maps = [m.double() for m in maps]
    logits = []
    for i in range(len(maps[0])):
        steps = [[m[i] for m in maps[s : s + len(sizes)]] for s in range(0, len(maps), len(sizes))]
        classes = torch.cat([class_token(step, w, sizes, heads) for step in steps])
        logits.append(w['fc.weight'] @ classes + w['fc.bias'])
    return torch.stack(logits).float()


@pytest.mark.parametrize('steps', [1, 2, 3])
def test_the_whole_head_from_its_weights(steps):
    model, maps = fusion(num_timesteps=steps), random_maps(steps=steps)
    assert model.state_dict()['blocks.0.mlp.0.weight'].shape == (48, 12)
    torch.testing.assert_close(model(maps), by_hand(model, maps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('channels_last', [False, True])
def test_an_image_is_classified_alike_in_any_batch(channels_last):
    model, maps = fusion(), random_maps(batch=4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = [m[order] for m in maps]
    if channels_last:
        shuffled = [m.to(memory_format=torch.channels_last) for m in shuffled]
    full = model(maps)
    torch.testing.assert_close(model(shuffled), full[order], atol=1e-5, rtol=1e-5)
    for i in range(4):
        torch.testing.assert_close(model([m[i : i + 1] for m in maps]), full[i : i + 1], atol=1e-5, rtol=1e-5)


def test_maps_of_another_size_are_pooled_to_the_declared_one():
    model = fusion()
    maps = random_maps(shapes=[(4, 13, 9), (6, 2, 5)])
    declared = [F.adaptive_avg_pool2d(m, size) for m, size in zip(maps, [(4, 4), (3, 3)] * 2)]
    torch.testing.assert_close(model(maps), model(declared))
    torch.testing.assert_close(model(maps), by_hand(model, maps), atol=1e-4, rtol=1e-4)


def test_a_constant_map_says_nothing():
    """LayerNorm leaves its bias alone, so that every constant gives the same logits."""
    model = fusion()
    ones = [torch.ones_like(m) for m in random_maps()]
    logits = model(ones)
    torch.testing.assert_close(logits, by_hand(model, ones), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model([1000 * m for m in ones]), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('dtype, atol', [(torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_half_precision_maps_under_autocast(dtype, atol):
    """Also of features near half precision's largest number."""
    model, maps = fusion(), [m.to(dtype) for m in random_maps()]
    full = by_hand(model, [m.float() for m in maps])
    assert full.abs().max() > 4 * atol
    with torch.autocast('cpu', dtype):
        half = model(maps)
        massive = model([(m / m.abs().max() * 6e4).to(dtype) for m in maps])
    torch.testing.assert_close(half.float(), full, atol=atol, rtol=0)
    assert massive.isfinite().all()


@pytest.mark.parametrize('with_cp, runs', [(False, 2), (True, 4)])
def test_checkpointing_computes_the_blocks_again(with_cp, runs):
    model, calls = fusion(with_cp=with_cp), []
    for block in model.blocks:
        # a recomputation stops before the block's end: count its starts
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    model(random_maps()).sum().backward()
    assert len(calls) == runs


def test_defaults_are_the_papers():
    with torch.device('meta'):
        model = AttentionFusion(10, 1024, in_strides=[4], image_size=256)
    assert model.tokens == [256] and model.fc.in_features == 1024 and model.num_classes == 10
    assert [block.heads for block in model.blocks] == [8, 8]
    shapes = {name: tuple(p.shape) for name, p in model.blocks[1].named_parameters()}
    assert shapes == {
        'norm1.weight': (1024,),
        'norm1.bias': (1024,),
        'norm2.weight': (1024,),
        'norm2.bias': (1024,),
        'qkv.weight': (3072, 1024),
        'out.weight': (1024, 1024),
        'out.bias': (1024,),
        'mlp.0.weight': (4096, 1024),
        'mlp.0.bias': (4096,),
        'mlp.2.weight': (1024, 4096),
        'mlp.2.bias': (1024,),
    }


def test_every_parameter_learns_with_and_without_checkpointing():
    maps = random_maps()
    grads = []
    for with_cp in (False, True):
        model = fusion(with_cp=with_cp)
        model(maps).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(g.abs().max() > 0 for g in grads[0])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads))


def test_the_papers_sizes():
    """Blocks 19, 24, 30 of ADM-256: 1024 channels at 8² and 16², 512 at 64²; three timesteps."""
    with torch.device('meta'):
        model = AttentionFusion(1000, [1024, 1024, 512] * 3, in_strides=[32, 16, 4] * 3, num_timesteps=3, image_size=256)
        maps = [torch.empty(2, c, s, s) for c, s in ((1024, 8), (1024, 16), (512, 64))] * 3
        assert model(maps).shape == (2, 1000)
    assert model.tokens == [64, 256, 256]
    assert model.fc.in_features == 3072
    assert not AttentionFusion(2, 4, sizes=[2], dim=8).cls.any()
    assert model.blocks[0].qkv.bias is None and len(model.blocks) == 2


def test_sizes_come_from_strides():
    model = AttentionFusion(3, [4, 6], in_strides=[4, 2], image_size=(20, 30), dim=8, heads=2)
    assert model.sizes == [(5, 8), (10, 15)]
    assert AttentionFusion(3, [4, 6] * 2, in_strides=[4, 2] * 2, num_timesteps=2, image_size=20, dim=8).sizes == [(5, 5), (10, 10)]


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: AttentionFusion(2, 3), 'give image_size'),
        (lambda: AttentionFusion(2, 3, sizes=[4], dim=10, heads=4), 'dim a multiple of heads'),
        (lambda: AttentionFusion(2, [3, 4, 3], sizes=[4], num_timesteps=2, dim=8), 'no 2 times the same taps'),
        (lambda: AttentionFusion(2, [3, 4], sizes=[4], dim=8), 'one .height, width. for each'),
        (lambda: fusion()(random_maps()[:1]), r'maps of \[4\] channels.*t-major'),
        (lambda: AttentionFusion(2, [3, 4] * 2, in_strides=[4, 2, 4, 4], num_timesteps=2, image_size=8, dim=8), 'no 2 times those of 2 taps'),
        (lambda: AttentionFusion(2, 3, in_strides=[4], image_size=(8, 8, 3), dim=8), 'a side, or .height, width.'),
        (lambda: AttentionFusion(2, 3, sizes=[(3,)], dim=8), 'a side, or .height, width.'),
        (lambda: AttentionFusion(2, 3, sizes=[3], dim=8, mlp_ratio=0), 'mlp_ratio=0'),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Heads of classifiers against loops: pooling, convolution."""

import pytest
import torch
import torch.nn.functional as F

import mmdiffrep  # noqa: F401
from mmdiffrep.models.classification import ConvHead, PooledHead


def maps_of(*shapes, seed=0, batch=3):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=g) for shape in shapes]


def pooled_by_hand(m, n):
    """torch's adaptive cells: from floor(i·h/n) to ceil((i+1)·h/n)."""
    c, h, w = m.shape
    out = torch.zeros(c, n, n)
    for i in range(n):
        for j in range(n):
            rows = range(i * h // n, -(-(i + 1) * h // n))
            columns = range(j * w // n, -(-(j + 1) * w // n))
            for k in range(c):
                out[k, i, j] = sum(m[k, y, x].item() for y in rows for x in columns) / (len(rows) * len(columns))
    return out


@pytest.mark.parametrize('pool', [1, 2, 4])
def test_pooled_head_against_a_loop(pool):
    maps = maps_of((3, 7, 5), (2, 4, 6))
    head = PooledHead(4, [3, 2], pool=pool)
    got = head(maps)
    for b in range(3):
        x = torch.cat([pooled_by_hand(m[b], pool).flatten() for m in maps])
        want = [sum((w * v).item() for w, v in zip(row, x)) + bias.item() for row, bias in zip(head.fc.weight, head.fc.bias)]
        assert got[b].tolist() == pytest.approx(want, abs=1e-5)
    assert head.fc.in_features == 5 * pool**2
    assert PooledHead(1000, [1024], pool=2).fc.in_features == 4096  # GDC's


def test_mlp_and_normalisation():
    maps = maps_of((3, 7, 5), batch=6)
    head = PooledHead(4, [3], hidden=[5, 6], norm='bn', dropout=0.5).train()
    head.eval()(maps)
    assert not head.norm.running_mean.any()
    head.train()(maps)
    x = maps[0].mean((2, 3))
    assert torch.allclose(head.norm.running_mean, 0.1 * x.mean(0), atol=1e-6)
    head.eval()
    z = (x - head.norm.running_mean) / (head.norm.running_var + 1e-5).sqrt()
    first, second = (m for m in head.hidden if isinstance(m, torch.nn.Linear))
    want = head.fc((second((first(z)).clamp(min=0))).clamp(min=0))
    assert torch.allclose(head(maps), want, atol=1e-6)
    assert not head.norm.state_dict().keys() & {'weight', 'bias'}


def test_pooling_is_in_fp32():
    """The mean of 64·64 equal numbers in half precision is that number."""
    head = PooledHead(1, [1])
    torch.nn.init.ones_(head.fc.weight)
    m = torch.full((1, 1, 64, 64), 1000.0, dtype=torch.float16)
    assert head([m]).item() == pytest.approx(1000)
    m = torch.tensor([2048.0, 2050.0], dtype=torch.float16).view(1, 1, 1, 2)
    assert head([m]).item() == 2049  # no number of half precision


def test_dropout_is_before_the_last_layer():
    """When all is dropped, the last layer's bias is left."""
    head = PooledHead(4, [3], dropout=1.0).train()
    torch.nn.init.normal_(head.fc.bias)
    assert torch.equal(head(maps_of((3, 4, 4))), head.fc.bias.expand(3, 4))


def test_conv_head_by_hand():
    maps = maps_of((3, 8, 6), (2, 4, 3))
    head = ConvHead(4, [3, 2], channels=(5, 6), pool=7).eval()
    for norm in head.norms:
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.stack([torch.cat([F.adaptive_avg_pool2d(m[b], (7, 6)) for m in maps]) for b in range(3)])
    for conv, norm, stride in zip(head.convs, head.norms, (2, 1)):  # 7×6 -> 4×3 -> as it is
        x = norm(F.conv2d(x, conv.weight, stride=stride, padding=1)).relu()
    assert x.shape[-2:] == (4, 3)
    assert torch.allclose(head(maps), head.fc(x.mean((2, 3))), atol=1e-6)


@pytest.mark.parametrize('side, left', [(16, [8, 4, 2]), (4, [2, 2, 2]), (3, [3, 3, 3])])
def test_conv_head_halves_from_four_cells_on(side, left):
    head = ConvHead(2, [3], channels=(4, 4, 4))
    sides = []
    for norm in head.norms:
        norm.register_forward_hook(lambda _module, _args, out: sides.append(out.shape[-1]))
    head(maps_of((3, side, side)))
    assert sides == left


@pytest.mark.parametrize('make', [lambda: PooledHead(4, [3, 2], pool=2, hidden=[7]), lambda: ConvHead(4, [3, 2], channels=(8, 8))])
def test_every_parameter_of_a_head_learns(make):
    torch.manual_seed(0)
    head = make()
    head(maps_of((3, 7, 5), (2, 4, 6))).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


@pytest.mark.parametrize('dtype, atol', [(torch.float16, 0.004), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(
    'make',
    [
        lambda: PooledHead(4, [3, 2], pool=2),
        lambda: PooledHead(4, [3, 2], norm='bn', hidden=[16]),
        lambda: ConvHead(4, [3, 2], channels=(8, 8)),
    ],
)
def test_heads_on_half_precision_maps_under_autocast(make, dtype, atol):
    torch.manual_seed(0)
    head, maps = make().eval(), [m.to(dtype) for m in maps_of((3, 7, 5), (2, 4, 6))]
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3)
    full = head([m.float() for m in maps])
    with torch.autocast('cpu', dtype):
        half = head(maps)
    assert full.abs().max() > 10 * atol and half.isfinite().all()
    torch.testing.assert_close(half.float(), full, atol=atol, rtol=0)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: PooledHead(0, 3), 'num_classes=0'),
        (lambda: PooledHead(2, 3, norm='ln'), "norm='ln'"),
        (lambda: PooledHead(2, [3, -1]), 'self-attention'),
        (lambda: PooledHead(2, 3)(maps_of((4, 2, 2))), r'maps of \[4\] channels.*built for \[3\]'),
        (lambda: ConvHead(2, 3, channels=()), 'one convolution or more'),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

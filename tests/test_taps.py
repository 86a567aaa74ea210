"""Reading and injecting at taps, against plain forward hooks on diffusers' untouched network."""

import pytest
import torch

from mmdiffrep.diffusion.session import TapSession
from mmdiffrep.diffusion.taps import Tap, find_module

TAPS = [
    'conv_in', 'down_blocks.0', 'down_blocks.0:in', 'down_blocks.1.resnets.0', 'down_blocks.1.attentions.0:in',
    'down_blocks.1.attentions.0', 'down_blocks.0.downsamplers.0', 'mid_block:in', 'mid_block',
    'mid_block.attentions.0', 'mid_block.resnets.1:in', 'up_blocks.0:in', 'up_blocks.0',
    'up_blocks.1.resnets.0:in', 'up_blocks.1.resnets.0.conv1', 'up_blocks.1.resnets.1',
    'up_blocks.1.attentions.1', 'up_blocks.1.upsamplers.0', 'up_blocks.2.resnets.1:in', 'up_blocks.2',
    'conv_out:in', 'conv_out',
]  # fmt: skip


def plain(unet, x, t, taps):
    """The oracle: ordinary hooks, diffusers' own call."""
    found, handles = {}, []
    for text in taps:
        path, _, side = text.partition(':')
        module = unet.get_submodule(path)
        if side == 'in':

            def before(_m, args, kwargs, text=text):
                value = args[0] if args else kwargs['hidden_states']
                found.setdefault(text, value.clone())

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_m, _args, out, text=text):
                found.setdefault(text, (out if torch.is_tensor(out) else out[0]).clone())

            handles.append(module.register_forward_hook(after))
    unet(x, t)
    for handle in handles:
        handle.remove()
    return found


def fresh_unet(config, seed=0):
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**config).eval().requires_grad_(False)


def hooks(root):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in root.modules()
    )


def batch(n=2, size=(16, 24), seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, *size, generator=g), torch.randint(1000, (n,), generator=g)


def test_parse_and_print():
    assert Tap.parse('up_blocks.1') == Tap('up_blocks.1', 'out') == Tap.parse('up_blocks.1:out')
    assert str(Tap.parse('a.b:in')) == 'a.b:in' and str(Tap('a.b')) == 'a.b'
    for wrong in ('', ':in', 'up_blocks.1:middle'):
        with pytest.raises(ValueError, match='write .*module path.*for example'):
            Tap.parse(wrong)


def test_unknown_module_lists_near_ones(tiny_denoiser):
    with pytest.raises(ValueError, match=r"tap 'up_block.1'.*Nearest: \[.*'up_blocks.1'.*list_taps"):
        tiny_denoiser().tap('up_block.1')


def test_every_tap_is_what_a_plain_hook_sees(tiny_denoiser, tiny_config):
    x, t = batch()
    expected = plain(fresh_unet(tiny_config), x, t, TAPS)
    denoiser = tiny_denoiser()
    together = denoiser.features(x, t, taps=TAPS)
    assert set(together) == set(TAPS)
    for tap in TAPS:
        assert torch.equal(together[tap], expected[tap]), tap
        assert torch.equal(denoiser.features(x, t, taps=[tap])[tap], expected[tap]), tap
    assert hooks(denoiser) == 0


def test_maps_come_in_the_order_of_execution(tiny_denoiser):
    x, t = batch()
    found = tiny_denoiser().features(x, t, taps=list(reversed(TAPS)))
    order = [TAPS.index(name) for name in found]
    before = {'down_blocks.0': 'down_blocks.1.resnets.0', 'down_blocks.0:in': 'down_blocks.0'}
    for first, second in before.items():
        assert list(found).index(first) < list(found).index(second)
    assert len(order) == len(TAPS)
    info = list(tiny_denoiser().tap_info((16, 24)))
    assert [info.index(name) for name in found] == sorted(info.index(name) for name in found)


def test_two_names_of_one_place_both_come(tiny_denoiser):
    x, t = batch()
    found = tiny_denoiser().features(x, t, taps=['mid_block', 'mid_block:out'])
    assert set(found) == {'mid_block', 'mid_block:out'}
    assert found['mid_block'] is found['mid_block:out']


def test_forward_stops_behind_the_last_tap(tiny_denoiser):
    x, t = batch()
    denoiser = tiny_denoiser()
    ran = []
    handle = denoiser.unet.up_blocks[1].register_forward_pre_hook(lambda *_: ran.append(1))
    denoiser.features(x, t, taps=['up_blocks.0', 'conv_in'])
    handle.remove()
    assert not ran


@pytest.mark.parametrize('where', ['conv_in', 'down_blocks.1.resnets.0', 'mid_block.attentions.0'])
def test_no_hook_is_left_after_an_exception(tiny_denoiser, tiny_config, where):
    x, t = batch()
    denoiser = tiny_denoiser()
    handle = find_module(denoiser.unet, where).register_forward_hook(lambda *_: 1 / 0)
    for checkpointing in (False, True):
        denoiser.set_checkpointing(checkpointing)
        denoiser.unet.requires_grad_(checkpointing)
        with pytest.raises(ZeroDivisionError):
            denoiser.features(x, t, taps=['up_blocks.0'], inject={'mid_block:in': torch.zeros(1)})
        assert hooks(denoiser) == 1 and denoiser._session is None
    handle.remove()
    denoiser.set_checkpointing(False)
    denoiser.unet.requires_grad_(False)
    found = denoiser.features(x, t, taps=['up_blocks.0'])['up_blocks.0']
    assert torch.equal(found, plain(fresh_unet(tiny_config), x, t, ['up_blocks.0'])['up_blocks.0'])


@pytest.mark.parametrize('side', ['', ':in'])
@pytest.mark.parametrize('path', ['conv_in', 'down_blocks.1', 'down_blocks.1.attentions.0', 'up_blocks.1'])
def test_inject_adds_at_the_place(tiny_denoiser, tiny_config, path, side):
    """Against a network whose module is really wrapped in an addition."""
    x, t = batch()
    denoiser = tiny_denoiser()
    tap = path + side
    here = denoiser.features(x, t, taps=[tap])[tap]
    value = torch.randn(1, *here.shape[1:], generator=torch.Generator().manual_seed(2))
    got = denoiser.features(x, t, taps=[tap, 'up_blocks.2'], inject={tap: value})
    assert torch.equal(got[tap], here + value)  # read after the addition

    oracle = fresh_unet(tiny_config)
    module = oracle.get_submodule(path)
    inner = module.forward

    def forward(*args, **kwargs):
        if side:
            if args:
                args = (args[0] + value, *args[1:])
            else:
                kwargs['hidden_states'] = kwargs['hidden_states'] + value
            return inner(*args, **kwargs)
        out = inner(*args, **kwargs)
        return out + value if torch.is_tensor(out) else (out[0] + value, *out[1:])

    module.forward = forward
    expected = plain(oracle, x, t, ['up_blocks.2'])['up_blocks.2']
    assert torch.equal(got['up_blocks.2'], expected)
    assert not torch.equal(expected, plain(fresh_unet(tiny_config), x, t, ['up_blocks.2'])['up_blocks.2'])


def test_inject_refuses_what_does_not_fit(tiny_denoiser):
    x, t = batch(1)
    denoiser = tiny_denoiser()
    for shape in [(1, 7, 1, 1), (3, 16, 1, 1), (1, 1, 16, 1, 1)]:  # also what would enlarge the activation
        with pytest.raises(ValueError, match="inject: a tensor of shape .* at 'mid_block', of shape"):
            denoiser.features(x, t, taps=['up_blocks.0'], inject={'mid_block': torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"inject: \['up_blocks.1'\] run after the last of the taps"):
        denoiser.features(x, t, taps=['up_blocks.0'], inject={'up_blocks.1': torch.zeros(1)})
    assert hooks(denoiser) == 0


# ---- activation checkpointing ---------------------------------------------------------------------------------

CHECKPOINTED = [
    (['up_blocks.1'], {}),
    (['up_blocks.1.resnets.0.conv1'], {}),  # the last tap is inside a checkpointed unit
    (['conv_in', 'down_blocks.1.resnets.0', 'mid_block', 'up_blocks.0.resnets.1.conv2', 'up_blocks.1'], {}),
    (['up_blocks.1'], {'mid_block': (2, 16, 1, 1)}),
    (['up_blocks.1'], {'down_blocks.1.resnets.0.conv1': (1, 16, 1, 1)}),  # injected inside a unit
    (['up_blocks.0.resnets.1.conv1'], {'up_blocks.0.resnets.1.norm1': (2, 1, 4, 6)}),  # in the last unit itself
    (['mid_block', 'up_blocks.1.resnets.0'], {'down_blocks.0.resnets.0': (1,), 'up_blocks.1.resnets.0:in': (1, 32, 1, 1)}),
]


@pytest.mark.parametrize('taps, injected', CHECKPOINTED)
def test_checkpointing_changes_no_gradient(tiny_denoiser, taps, injected):
    x, t = batch()
    results = []
    for checkpointing in (False, True):
        denoiser = tiny_denoiser()
        denoiser.unet.requires_grad_(True)
        denoiser.set_checkpointing(checkpointing)
        image = x.clone().requires_grad_(True)
        g = torch.Generator().manual_seed(3)
        added = {k: torch.randn(s, generator=g).requires_grad_(True) for k, s in injected.items()}
        found = denoiser.features(image, t, taps=taps, inject=added)
        assert hooks(denoiser) == 0
        weights = [torch.randn(v.shape, generator=torch.Generator().manual_seed(5)) for v in found.values()]
        sum((w * v).sum() for w, v in zip(weights, found.values())).backward()
        assert hooks(denoiser) == 0
        grads = {n: p.grad for n, p in denoiser.unet.named_parameters()}
        results.append((found, grads, {k: v.grad for k, v in added.items()}, image.grad))
    (a, ga, ia, xa), (b, gb, ib, xb) = results
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert any(g is not None for g in ga.values())
    for name in ga:
        assert (ga[name] is None) == (gb[name] is None), name
        if ga[name] is not None:
            assert torch.equal(ga[name], gb[name]), name
    for name in ia:
        assert ib[name] is not None and ia[name].abs().sum() > 0 and torch.equal(ia[name], ib[name])
    assert torch.equal(xa, xb)


def test_checkpointing_really_recomputes(tiny_denoiser):
    x, t = batch()
    denoiser = tiny_denoiser()
    denoiser.unet.requires_grad_(True)
    denoiser.set_checkpointing(True)
    runs = []
    handle = denoiser.unet.down_blocks[0].resnets[0].conv1.register_forward_hook(lambda *_: runs.append(1))
    found = denoiser.features(x, t, taps=['up_blocks.0'])['up_blocks.0']
    assert len(runs) == 1
    found.sum().backward()
    assert len(runs) == 2
    handle.remove()


def test_several_backward_passes_of_one_checkpointed_injection(tiny_denoiser):
    x, t = batch()
    value = torch.ones(1, 16, 1, 1, requires_grad=True)
    grads = []
    for checkpointing in (False, True):
        denoiser = tiny_denoiser()
        denoiser.unet.requires_grad_(True)
        denoiser.set_checkpointing(checkpointing)
        found = denoiser.features(
            x, t, taps=['up_blocks.1'], inject={'up_blocks.0.resnets.0.conv1': value}
        )['up_blocks.1']
        for retain in (True, False):
            loss = found.square().sum() if retain else found.sum()
            grads.append(torch.autograd.grad(loss, value, retain_graph=retain)[0])
    assert torch.equal(grads[0], grads[2]) and torch.equal(grads[1], grads[3])


def test_two_passes_with_different_injections_before_one_backward(tiny_denoiser):
    x, t = batch()
    results = []
    for checkpointing in (False, True):
        denoiser = tiny_denoiser()
        denoiser.unet.requires_grad_(True)
        denoiser.set_checkpointing(checkpointing)
        a = torch.full((1, 16, 1, 1), 0.5, requires_grad=True)
        b = torch.full((1, 16, 1, 1), -2.0, requires_grad=True)
        tap = 'up_blocks.0.resnets.0.conv1'
        first = denoiser.features(x, t, taps=['up_blocks.0'], inject={tap: a})['up_blocks.0']
        second = denoiser.features(x, t, taps=['up_blocks.0'], inject={tap: b})['up_blocks.0']
        (first.square().sum() + second.square().sum()).backward()
        results.append((a.grad, b.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_session_reads_a_repeated_module_once():
    module = torch.nn.Linear(2, 2)
    session = TapSession(torch.nn.ModuleDict(dict(m=module)), [Tap('m')], stop=False)
    with session():
        first = module(torch.zeros(1, 2))
        module(torch.ones(1, 2))
    assert session.captured[Tap('m')] is first

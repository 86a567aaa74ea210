"""What every family of denoisers fulfils, against plain hooks on diffusers' untouched networks.

A new family is one entry in FAMILIES.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.dit import DiT
from mmdiffrep.diffusion.pixel_unet import PixelUNet
from mmdiffrep.diffusion.session import TapSession
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion

PIXEL = dict(
    block_out_channels=(8, 16, 16), layers_per_block=1, attention_head_dim=4, norm_num_groups=4,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip


@dataclass
class Family:
    kind: type  # of our denoiser
    network: str  # class of diffusers
    part: str | None  # of the config; None: all of it
    stride: int  # image pixels per pixel of x_t
    taps: dict[str, int]  # tap -> image pixels per pixel of its map
    inject: tuple[str, str]  # a map and (where there are any) tokens
    call: Callable  # the untouched network's own call
    condition: Callable = lambda n: None


def tokens(n):
    return torch.randn(n, 5, 12, generator=torch.Generator().manual_seed(8))


def classes(n):
    return torch.arange(n) * 3


BLOCK = 'attentions.0.transformer_blocks.0'
FAMILIES = dict(
    pixel=Family(
        PixelUNet, 'UNet2DModel', None, 1,
        {
            'conv_in:in': 1, 'conv_in': 1, 'down_blocks.0:in': 1, 'down_blocks.0': 2, 'down_blocks.1.resnets.0.conv1': 2,
            'down_blocks.1.attentions.0:in': 2, 'down_blocks.1.attentions.0.group_norm': 2, 'down_blocks.1.attentions.0.to_k': 2,
            'down_blocks.1.attentions.0': 2, 'mid_block:in': 4, 'mid_block.attentions.0.to_out.0:in': 4, 'mid_block': 4,
            'up_blocks.1.resnets.1:in': 2, 'up_blocks.1.attentions.1': 2, 'up_blocks.1.upsamplers.0': 1, 'up_blocks.2': 1,
            'conv_out': 1,
        },
        ('mid_block', 'up_blocks.1.attentions.0.to_q'), lambda net, x, t: net(x, t),
    ),
    sd=Family(
        StableDiffusion, 'UNet2DConditionModel', 'unet', 2,
        {
            'conv_in': 2, 'down_blocks.0': 4, 'down_blocks.1.attentions.0:in': 4, f'down_blocks.1.{BLOCK}:in': 4, f'down_blocks.1.{BLOCK}.attn1.to_k': 4,
            f'down_blocks.1.{BLOCK}.attn2:in': 4, f'down_blocks.1.{BLOCK}.attn2.to_q': 4, f'down_blocks.1.{BLOCK}.attn2': 4,
            f'down_blocks.1.{BLOCK}.ff.net.0': 4, 'down_blocks.1.attentions.0': 4, 'down_blocks.1': 8, 'mid_block:in': 8,
            'mid_block.resnets.0': 8, f'mid_block.{BLOCK}': 8, 'mid_block': 8, 'up_blocks.1:in': 4, 'up_blocks.1.resnets.0:in': 4,
            f'up_blocks.1.{BLOCK}.norm3:in': 4, f'up_blocks.1.{BLOCK}': 4, 'up_blocks.1.attentions.1': 4, 'up_blocks.1': 2,
            'up_blocks.2': 2, 'conv_out': 2,
        },
        ('mid_block', f'up_blocks.1.{BLOCK}.attn2'),
        lambda net, x, t: net(x, t, encoder_hidden_states=tokens(len(x))), lambda n: Condition(tokens=tokens(n)),
    ),
    dit=Family(
        DiT, 'DiTTransformer2DModel', 'transformer', 2,
        {
            'pos_embed:in': 2, 'pos_embed.proj': 4, 'pos_embed': 4, 'transformer_blocks.0:in': 4, 'transformer_blocks.0.norm1': 4,
            'transformer_blocks.0.attn1.to_q': 4, 'transformer_blocks.0.attn1': 4, 'transformer_blocks.1.ff.net.0.proj': 4,
            'transformer_blocks.1': 4, 'transformer_blocks.2.norm3:in': 4, 'transformer_blocks.2': 4, 'norm_out': 4,
            'proj_out_2': 4,
        },
        ('pos_embed.proj', 'transformer_blocks.1'),
        lambda net, x, t: net(x, timestep=t, class_labels=classes(len(x))), lambda n: Condition(class_ids=classes(n)),
    ),
)  # fmt: skip
SIZES = [(24, 24), (16, 40), (40, 8)]  # square, wide, tall; odd numbers of steps


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope='module')
def config(family, small_sd_config, small_dit_config):
    return {PixelUNet: PIXEL, StableDiffusion: small_sd_config, DiT: small_dit_config}[family.kind]


@pytest.fixture(scope='module')
def denoiser(family, config):
    """One network for the tests that change nothing about it; its traces are made once a size."""
    return family.kind(config=config)


@pytest.fixture
def fresh(denoiser):
    """A copy of its own."""
    return copy.deepcopy(denoiser)


@pytest.fixture(scope='module')
def oracle(family, config):
    """diffusers' network with the same random weights, never touched."""
    import diffusers

    entries = config if family.part is None else config[family.part]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(diffusers, family.network).from_config(entries).eval().requires_grad_(False)


def batch(family, n=2, size=(16, 24), seed=1):
    g = torch.Generator().manual_seed(seed)
    channels = 3 if family.stride == 1 else 4
    x = torch.randn(n, channels, *(side // family.stride for side in size), generator=g)
    return x, torch.randint(1000, (n,), generator=g)


def hooks(root):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in root.modules()
    )


def by_hand(value, path, network, size, stride):
    """Tokens (B, N, C) laid out row by row in the true height and width."""
    if value.dim() == 4:
        return value
    if path.endswith('group_norm'):  # inside an attention the only one with channels first
        value = value.transpose(1, 2)
    h, w = (side // stride for side in size)
    rows = [value[:, y * w : (y + 1) * w] for y in range(h)]
    return torch.stack(rows, 1).permute(0, 3, 1, 2)


def plain(family, network, x, t, size):
    """Ordinary hooks while diffusers' network is called as its documentation says."""
    found, handles = {}, []
    for tap, stride in family.taps.items():
        path, _, side = tap.partition(':')

        def keep(value, tap=tap, path=path, stride=stride):
            value = value if torch.is_tensor(value) else value[0]
            found.setdefault(tap, by_hand(value.clone(), path, network, size, stride))

        module = network.get_submodule(path)
        if side == 'in':
            handles.append(
                module.register_forward_pre_hook(
                    lambda _m, args, kwargs, keep=keep: keep(
                        args[0] if args else kwargs['hidden_states']
                    ),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, out, keep=keep: keep(out)))
    try:
        family.call(network, x, t)
    except (
        RuntimeError
    ) as error:  # diffusers' own un-patchify of a DiT fails where tokens are no square
        assert family.kind is DiT and 'invalid for input of size' in str(error)
    finally:
        for handle in handles:
            handle.remove()
    return found


# ---- reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', SIZES)
def test_every_tap_is_what_a_plain_hook_sees(family, denoiser, oracle, size):
    x, t = batch(family, size=size)
    expected = plain(family, oracle, x, t, size)
    condition = family.condition(2)
    taps = list(family.taps)
    found = denoiser.features(x, t, condition, taps[::-1])
    assert list(found) == taps  # in the order of execution
    for tap in taps:
        assert found[tap].shape[-2:] == tuple(side // family.taps[tap] for side in size), tap
        assert torch.equal(found[tap], expected[tap]), tap
        if size == SIZES[1]:  # alone: the pass is stopped behind it
            assert torch.equal(denoiser.features(x, t, condition, [tap])[tap], expected[tap]), tap
    assert hooks(denoiser) == 0


@pytest.mark.parametrize('size', SIZES)
def test_declared_channels_and_strides_are_the_real_ones(family, denoiser, size):
    infos = denoiser.tap_info(size)
    assert set(family.taps) <= set(infos)
    assert {tap: infos[tap].stride for tap in family.taps} == family.taps
    x, t = batch(family, 1, size)
    moving = [name for name in infos if not denoiser.is_static(name)]
    condition = family.condition(1)
    if (
        condition is not None and condition.tokens is not None
    ):  # the default has as many tokens as were traced
        condition = None
    found = denoiser.features(x, t, condition, moving)
    if len(moving) < len(infos):
        image = torch.rand(1, 3, *size) * 2 - 1
        found |= denoiser.encode_tapped(
            image, [name for name in infos if denoiser.is_static(name)]
        )[1]
    assert set(found) == set(infos)
    for name, info in infos.items():
        assert found[name].shape[1] == info.channels, name
        assert tuple(n * info.stride for n in found[name].shape[-2:]) == size, name


def test_sizes_that_do_not_fit_are_refused(denoiser):
    with pytest.raises(
        ValueError,
        match=rf'does not fit: both sides must be multiples of {denoiser.divisor}.*Pad to',
    ):
        denoiser.tap_info((denoiser.divisor * 2, denoiser.divisor * 2 - 1))


def test_batch_of_one_and_three_agree(family, denoiser):
    x, t = batch(family, 3)
    condition = family.condition(3)
    taps = list(family.taps)
    together = denoiser.features(x, t, condition, taps)
    for i in range(3):
        one = condition and Condition(
            **{k: v[i : i + 1] for k, v in vars(condition).items() if v is not None}
        )
        alone = denoiser.features(x[i : i + 1], t[i : i + 1], one, taps)
        for tap in taps:
            torch.testing.assert_close(alone[tap][0], together[tap][i], rtol=1e-4, atol=1e-5)


def test_taps_that_are_no_maps_are_refused(family, denoiser):
    x, t = batch(family)
    for tap, message in {
        'no_block.1': r"tap 'no_block.1': the network has no such module. Nearest",
        family.inject[1] + ':middle': 'cannot be read: write .*with side one of',
    }.items():
        with pytest.raises(ValueError, match=message):
            denoiser.features(x, t, family.condition(2), [tap])
    with pytest.raises(ValueError, match='at least one tap'):
        denoiser.features(x, t, family.condition(2))
    with pytest.raises(ValueError, match='timesteps .* outside the schedule'):
        denoiser.features(x, t + 1000, family.condition(2), [family.inject[0]])


# ---- hooks ----------------------------------------------------------------------------------------------------


def test_the_pass_ends_behind_the_last_tap(family, denoiser):
    *_, tap, last = family.taps
    ran = []
    handle = denoiser.network.get_submodule(last.partition(':')[0]).register_forward_hook(
        lambda *_: ran.append(1)
    )
    x, t = batch(family)
    denoiser.features(x, t, family.condition(2), list(family.taps)[:-4])
    assert not ran
    denoiser.features(x, t, family.condition(2), [last])
    assert ran
    handle.remove()


@pytest.mark.parametrize('checkpointing', [False, True])
def test_no_hook_is_left_after_an_exception(family, fresh, denoiser, checkpointing):
    x, t = batch(family)
    names = list(family.taps)
    condition = family.condition(2)
    expected = denoiser.features(x, t, condition, names)
    middle = fresh.network.get_submodule(names[len(names) // 2].partition(':')[0])
    handle = middle.register_forward_hook(lambda *_: 1 / 0)
    fresh.set_checkpointing(checkpointing)
    fresh.network.requires_grad_(checkpointing)
    with pytest.raises(ZeroDivisionError):
        fresh.features(x, t, condition, names, {names[0]: torch.zeros(1)})
    assert hooks(fresh) == 1 and fresh._session is None
    handle.remove()
    found = fresh.features(x, t, condition, names)
    assert all(torch.equal(found[name], expected[name]) for name in names)
    assert hooks(fresh) == 0


# ---- injecting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('index', [0, 1])
def test_inject_adds_at_the_place(family, denoiser, oracle, index):
    """Against a network whose module really gives its output plus the value."""
    x, t = batch(family)
    condition = family.condition(2)
    tap, last = family.inject[index], list(family.taps)[-1]
    here = denoiser.features(x, t, condition, [tap])[tap]
    value = torch.randn(1, *here.shape[1:], generator=torch.Generator().manual_seed(2))
    got = denoiser.features(x, t, condition, [tap, last], {tap: value})
    assert torch.equal(got[tap], here + value)  # read after the addition

    other = copy.deepcopy(oracle)
    module = other.get_submodule(tap)
    inner = module.forward

    def forward(*args, **kwargs):
        out = inner(*args, **kwargs)
        first = out if torch.is_tensor(out) else out[0]
        added = first + (value if first.dim() == 4 else value.flatten(2).transpose(1, 2))
        return added if torch.is_tensor(out) else (added, *out[1:])

    module.forward = forward
    assert torch.equal(got[last], plain(family, other, x, t, (16, 24))[last])
    assert not torch.equal(got[last], plain(family, oracle, x, t, (16, 24))[last])


@pytest.mark.parametrize('index', [0, 1])
def test_inject_broadcasts_as_to_a_map(family, denoiser, index):
    x, t = batch(family)
    condition, tap = family.condition(2), family.inject[index]
    here = denoiser.features(x, t, condition, [tap])[tap]
    _, c, h, w = here.shape
    for shape in [(1,), (1, c, 1, 1), (2, 1, 1, 1), (1, 1, h, 1), (1, 1, 1, w), (2, c, h, w)]:
        value = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        got = denoiser.features(x, t, condition, [tap], {tap: value})[tap]
        torch.testing.assert_close(got, here + value)
    for shape in [(1, c + 1, 1, 1), (3, c, 1, 1), (1, 1, h + 1, 1), (1, 1, 1, h * w)]:
        with pytest.raises(
            ValueError,
            match=f'inject: a tensor of shape .* cannot be added to the activation at {tap!r}',
        ):
            denoiser.features(x, t, condition, [tap], {tap: torch.zeros(shape)})
    assert hooks(denoiser) == 0


# ---- gradients ------------------------------------------------------------------------------------------------


def gradients(denoiser, family, checkpointing, taps, inject=(), condition=None):
    denoiser = copy.deepcopy(denoiser)
    denoiser.network.requires_grad_(True)
    denoiser.set_checkpointing(checkpointing)
    x, t = batch(family)
    x.requires_grad_(True)
    g = torch.Generator().manual_seed(3)
    shapes = {
        tap: value.shape for tap, value in denoiser.features(x, t, family.condition(2), list(inject)).items()
    } if inject else {}  # fmt: skip
    added = {
        tap: torch.randn(1, *shapes[tap][1:], generator=g).requires_grad_(True) for tap in inject
    }
    found = denoiser.features(x, t, family.condition(2), taps, added)
    runs = []
    handles = [
        m.register_forward_hook(lambda *_: runs.append(1)) for m in denoiser.network.modules()
    ]
    sum((v * torch.randn(v.shape, generator=g)).sum() for v in found.values()).backward()
    for handle in handles:
        handle.remove()
    assert hooks(denoiser) == 0
    weights = {n: p.grad for n, p in denoiser.network.named_parameters()}
    return (
        found,
        weights | {'x': x.grad} | {f'inject {tap}': v.grad for tap, v in added.items()},
        bool(runs),
    )


def test_checkpointing_changes_no_gradient(family, denoiser):
    names = list(family.taps)
    for taps, inject in [(names[-1:], ()), (names[2::2], family.inject)]:
        one, expected, again = gradients(denoiser, family, False, taps, inject)
        two, got, recomputed = gradients(denoiser, family, True, taps, inject)
        assert not again and recomputed
        assert list(one) == list(two) and all(torch.equal(one[k], two[k]) for k in one)
        assert all(expected[f'inject {tap}'].abs().sum() > 0 for tap in inject)
        for name, value in expected.items():
            assert (value is None) == (got[name] is None), name
            assert value is None or torch.equal(value, got[name]), name


# ---- cutting --------------------------------------------------------------------------------------------------


def test_cutting_changes_no_activation_and_drops_what_is_behind(family, denoiser, traces_once):
    x, t = batch(family)
    condition = family.condition(2)
    expected = denoiser.features(x, t, condition, list(family.taps))
    sizes = []
    for tap in list(family.taps)[::3]:
        cut = copy.deepcopy(denoiser)
        cut.cut([tap])
        sizes.append(sum(p.numel() for p in cut.network.parameters()))
        stage, _, index = tap.partition(':')[0].partition('.')
        if stage.endswith('blocks'):
            assert len(cut.network.get_submodule(stage)) == int(index.partition('.')[0]) + 1, tap
        found = cut.features(x, t, condition, [tap])
        assert torch.equal(found[tap], expected[tap]), tap
        assert hooks(cut) == 0
    assert sizes == sorted(sizes) and sizes[0] < 0.7 * sizes[-1]


def test_a_cut_network_is_still_described(family, denoiser):
    size = (16, 24)
    whole = denoiser.tap_info(size)
    for tap in [tap for tap in family.taps if tap.endswith(':in')][::4]:
        cut = copy.deepcopy(denoiser)
        cut.cut([tap])
        info = cut.tap_info(size)[tap]
        assert (info.channels, info.stride) == (whole[tap].channels, whole[tap].stride), tap
        names = set(cut.tap_info(size))
        assert names <= set(whole) and [n for n in whole if n in names] == list(cut.tap_info(size))


def test_unused_parameters_are_those_without_gradient(family, denoiser):
    for tap in list(family.taps)[5::19]:
        fresh = copy.deepcopy(denoiser)
        unused = set(fresh.unused_parameters([tap]))
        assert not any(p.requires_grad for p in fresh.network.parameters())
        fresh.network.requires_grad_(True)
        image = torch.rand(1, 3, 16, 16) * 2 - 1
        x = fresh.encode(image)
        fresh.features(x, torch.tensor([5]), family.condition(1), [tap])[
            tap
        ].square().sum().backward()
        for name, p in fresh.network.named_parameters():
            assert (p.grad is None) == (name in unused), (tap, name)


def test_a_session_alone_reads_nothing_more(denoiser):
    session = TapSession(denoiser.network, [])
    with session():
        pass
    assert session.captured == {} and hooks(denoiser) == 0

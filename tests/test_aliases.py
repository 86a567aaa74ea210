"""Paper aliases on random networks: as many as ADM has blocks, each names an existing module."""

import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiffrep.diffusion import adm, aliases

diffusers = pytest.importorskip('diffusers')

# ADM-256: L = 6 levels, n = 2 ResBlocks a level
ADM_256 = dict(
    down_block_types=['ResnetDownsampleBlock2D'] * 3 + ['AttnDownBlock2D'] * 3,
    up_block_types=['AttnUpBlock2D'] * 3 + ['ResnetUpsampleBlock2D'] * 3,
    layers_per_block=2,
)


@st.composite
def unet_configs(draw):
    """UNet2DModel arguments of 1 to 4 levels, the way up not always a mirror of the way down."""
    levels = draw(st.integers(1, 4))

    def types(side, resnet):
        plain = resnet if draw(st.booleans()) else f'{side}Block2D'
        return [f'Attn{side}Block2D' if draw(st.booleans()) else plain for _ in range(levels)]

    return dict(
        block_out_channels=draw(
            st.lists(st.sampled_from([32, 64]), min_size=levels, max_size=levels)
        ),
        down_block_types=types('Down', 'ResnetDownsampleBlock2D'),
        up_block_types=types('Up', 'ResnetUpsampleBlock2D'),
        layers_per_block=draw(st.integers(1, 3)),
        add_attention=draw(st.booleans()),
        downsample_type=draw(st.sampled_from(['conv', 'resnet'])),
        upsample_type=draw(st.sampled_from(['conv', 'resnet'])),
    )


@settings(max_examples=40, deadline=None)
@given(unet_configs())
def test_aliases_name_the_blocks_of_any_network(config):
    with torch.device('meta'):
        unet = diffusers.UNet2DModel(**config)
    modules = dict(unet.named_modules())
    per_way = len(config['down_block_types']) * (config['layers_per_block'] + 1)
    found = aliases.list_aliases(config)
    count = {
        prefix: sum(name.startswith(prefix) for name in found)
        for prefix in ('adm:in.', 'adm:mid', 'adm:out.', 'ddpmseg:', 'gdc:b', 'ddae:out_',
                       'dift:block.', 'dift:up.')
    }  # fmt: skip
    assert count == {
        'adm:in.': per_way, 'adm:mid': 1, 'adm:out.': per_way, 'ddpmseg:': per_way,
        'gdc:b': 2 * per_way + 1, 'ddae:out_': per_way, 'dift:block.': per_way,
        'dift:up.': len(config['down_block_types']),
    }  # fmt: skip
    for name, tap in found.items():
        assert tap in modules and aliases.resolve_alias(name, unet.config) == tap
        assert aliases.resolve_alias(f'{name}:out', config) == tap
        path, _, side = aliases.resolve_alias(f'{name}:in', config).partition(':')
        assert path in modules and side == 'in'
    # each module that holds weights belongs to one block, once
    parts = [path for block in aliases.adm_blocks(config) for _, path in block.parts]
    assert len(parts) == len(set(parts))
    rest = {name for name, _ in unet.named_parameters()
            if not any(name.startswith(f'{part}.') for part in parts)}  # fmt: skip
    assert {name.partition('.')[0] for name in rest} == {
        'time_embedding', 'conv_norm_out', 'conv_out'
    }  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(unet_configs(), st.integers(1, 2))
def test_adm_blocks_have_adms_skip_connections(config, batch):
    """An output block's input is the block before it and the skip it takes, last in, first out."""
    with torch.device('meta'):
        unet = diffusers.UNet2DModel(**config)
        divisor = 2 ** (len(config['down_block_types']) - 1)
        x, t = torch.empty(batch, 3, 2 * divisor, 3 * divisor), torch.zeros(batch)
    seen = {}
    for block in aliases.adm_blocks(config):
        unet.get_submodule(block.input.removesuffix(':in')).register_forward_pre_hook(
            lambda _m, args, kwargs, name=block.name: seen.__setitem__(
                f'{name}:in', (args[0] if args else kwargs['hidden_states']).shape
            ),
            with_kwargs=True,
        )
        unet.get_submodule(block.output).register_forward_hook(
            lambda _m, _args, out, name=block.name: seen.__setitem__(name, out.shape)
        )
    unet(x, t)
    count = len(config['down_block_types']) * (config['layers_per_block'] + 1)
    before = 'middle_block'
    for k in range(count):
        skip, name = seen[f'input_blocks.{count - 1 - k}'], f'output_blocks.{k}'
        assert seen[f'{name}:in'][1] == seen[before][1] + skip[1]
        assert seen[f'{name}:in'][2:] == skip[2:] == seen[before][2:]
        before = name


def test_papers_off_by_ones_on_adm_256():
    def resolve(name):
        return aliases.resolve_alias(name, ADM_256)

    assert resolve('adm:in.0') == 'conv_in'
    assert resolve('adm:in.2') == 'down_blocks.0.resnets.1'
    assert resolve('adm:in.3') == 'down_blocks.0.downsamplers.0'  # a block of its own
    assert resolve('adm:in.10') == 'down_blocks.3.attentions.0'
    assert resolve('adm:out.1') == 'up_blocks.0.attentions.1'
    assert resolve('adm:out.2') == 'up_blocks.0.upsamplers.0'  # the upsampler counts
    assert resolve('ddae:out_3') == 'up_blocks.0.attentions.2'  # it does not
    assert resolve('ddae:out_18') == resolve('adm:out.17') == 'up_blocks.5.resnets.2'
    assert resolve('ddpmseg:12') == resolve('dift:block.12') == resolve('adm:out.12')
    assert [resolve(f'gdc:b{b}') for b in (1, 18, 19, 20, 37)] == [
        resolve(name) for name in ('adm:in.0', 'adm:in.17', 'adm:mid', 'adm:out.0', 'adm:out.17')
    ]
    assert resolve('dift:up.1') == 'up_blocks.1'
    assert resolve('adm:out.5:in') == 'up_blocks.1.resnets.2:in'
    assert resolve('gdc:b19:in') == 'mid_block:in'
    assert resolve('adm:mid:out') == 'mid_block'


def test_a_network_without_a_middle_keeps_the_numbers():
    config = ADM_256 | dict(mid_block_type=None)
    assert aliases.resolve_alias('gdc:b18', config) == aliases.resolve_alias('gdc:b18', ADM_256)
    assert aliases.resolve_alias('gdc:b20', config) == aliases.resolve_alias('gdc:b20', ADM_256)
    with pytest.raises(ValueError, match='no such block'):
        aliases.resolve_alias('gdc:b19', config)


def test_default_config_is_unet2dmodels():
    with torch.device('meta'):
        unet = diffusers.UNet2DModel()
    assert aliases.list_aliases({}) == aliases.list_aliases(unet.config)


def test_other_names_pass_unchanged():
    for name in ('up_blocks.1', 'up_blocks.1.resnets.2:in', 'mid_block'):
        assert aliases.resolve_alias(name, ADM_256) == name and not aliases.is_alias(name)


@pytest.mark.parametrize('name', ['adm:out.18', 'adm:up.3', 'adm', 'adm:in', 'adm:mid:probs'])
def test_unknown_aliases_list_the_valid_ones(name):
    with pytest.raises(
        ValueError, match='such block.*adm:in.0 … adm:in.17, adm:mid, adm:out.0 … adm:out.17; '
    ):
        aliases.resolve_alias(name, ADM_256)


@pytest.mark.parametrize(
    ('name', 'valid'),
    [('gdc:b0', 'gdc:b1 … gdc:b37'), ('ddae:out_0', 'ddae:out_1 … ddae:out_18'),
     ('ddpmseg:18', 'ddpmseg:0 … ddpmseg:17'),
     ('dift:2', 'dift:block.0 … dift:block.17, dift:up.0 … dift:up.5')],
)  # fmt: skip
def test_each_papers_numbers_are_said(name, valid):
    with pytest.raises(ValueError, match=f'Valid here: {valid};'):
        aliases.resolve_alias(name, ADM_256)


def test_networks_that_are_not_adm_like_are_refused():
    config = dict(down_block_types=['SkipDownBlock2D'], up_block_types=['SkipUpBlock2D'])
    with pytest.raises(
        ValueError, match="block type 'SkipDownBlock2D' is none of.*module path instead"
    ):
        aliases.resolve_alias('adm:mid', config)


def test_converted_networks_share_the_numbering():
    """An ADM config's key map and the aliases come from the same list of blocks."""
    config = dict(model_channels=32, out_channels=6, num_res_blocks=2, attention_resolutions=[2],
                  channel_mult=[1, 2, 2], resblock_updown=True)  # fmt: skip
    unet_config = adm.adm_to_diffusers_config(config)
    for block in aliases.adm_blocks(unet_config):
        for n, (_, path) in enumerate(block.parts):
            keys = [entry for key, entry in adm.adm_key_map(config).items()
                    if key.startswith(f'{block.name}.{n}.')]  # fmt: skip
            assert keys and all(name.startswith(f'{path}.') for key in keys for name in key.names)


def test_docstring_examples():
    assert doctest.testmod(aliases).failed == 0

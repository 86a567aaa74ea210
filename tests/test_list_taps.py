"""tools/list_taps.py: what it prints is what the network gives."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mmdiffrep.utils.taps import (
    find_backbone,
    format_table,
    sensible_taps,
    tap_rows,
    uncut_denoiser,
)

ROOT = Path(__file__).parents[1]
UNET = dict(
    sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip
TAPS = ['up_blocks.0.attentions.0', 'adm:out.2']
CONFIG = f"""
crop_size = (16, 24)
model = dict(type='mmseg.EncoderDecoder', backbone=dict(
    type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config=dict({UNET})),
    taps={TAPS}, timesteps=[10, 20],
    adapter=dict(type='mmdiffrep.StridePyramid', out_channels=8, width=8, strides=(2, 4))))
"""


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('list_taps', ROOT / 'tools' / 'list_taps.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return path


def table(text):
    """tap -> its row's words, of the first table."""
    body = text.split('\n\n')[1].splitlines()[2:]
    rows = [(line.startswith('*'), line.removeprefix('*').split()) for line in body]
    return {words[0]: (used, words[1:]) for used, words in rows}


def test_rows_are_what_a_plain_forward_gives(tool, config, capsys):
    assert tool.main([str(config)]) == 0
    out = capsys.readouterr().out
    rows = table(out)
    assert 'mid_block' in rows and 'up_blocks.1' in rows  # behind the last tap in use too
    assert not any('to_k' in tap or 'conv1' in tap for tap in rows)
    assert {tap for tap, (used, _) in rows.items() if used} == {
        'up_blocks.0.attentions.0', 'up_blocks.1.resnets.0'
    }  # fmt: skip
    denoiser = uncut_denoiser(find_backbone(tool.cli.Config.fromfile(config)))
    maps = denoiser.features(torch.zeros(1, 3, 16, 24), torch.tensor([10]), taps=list(rows))
    assert list(maps) == list(rows)  # in the order of execution
    orders = []
    for tap, (_, (channels, stride, size, order, *_)) in rows.items():
        _, c, h, w = maps[tap].shape
        assert (channels, float(stride), size) == (str(c), 16 / h, f'{h}×{w}')
        orders.append(int(order))
    assert orders == sorted(orders)
    assert 'adm:out.2' in rows['up_blocks.1.resnets.0'][1]
    assert 'StridePyramid at timesteps 10, 20' in out
    assert 'in_channels=[8, 8]' in out and '8×12' in out and '4×6' in out


def test_odd_sizes_show_what_covers_the_image(tool, config, capsys):
    assert tool.main([str(config), '--size', '15', '9']) == 0
    out = capsys.readouterr().out
    assert 'padded to 16×10 inside' in out
    assert table(out)['mid_block'][1][:3] == ['16', '2', '8×5']


def test_all_lists_the_inside_too(tool, config, capsys):
    assert tool.main([str(config), '--all']) == 0
    rows = table(capsys.readouterr().out)
    assert 'up_blocks.0.resnets.0.conv1' in rows and 'down_blocks.1.attentions.0' in rows


def test_mistakes_are_one_line(tool, config, tmp_path, capsys):
    def error(*argv):
        assert tool.main(list(argv)) == 2
        return capsys.readouterr().err

    assert 'no mmdiffrep.DiffusionBackbone' in error(
        str(ROOT / 'configs/fpn/r18_fpn_300i_toyscenes-64x64.py')
    )
    assert 'is not a file' in error(str(tmp_path / 'missing.py'))
    assert 'both sides must be positive' in error(str(config), '--size', '0', '8')
    assert 'up_blocks.7' in error(str(config), '--cfg-options', 'model.backbone.taps=[up_blocks.7]')
    with pytest.raises(ValueError, match='no denoiser and no taps'):
        uncut_denoiser(dict(type='mmdiffrep.DiffusionBackbone'))


def test_sensible_taps():
    names = ['conv_in', 'conv_in:in', 'up_blocks.10', 'up_blocks.1.resnets.2:in', 'up_blocks.1.resnets.2.conv1',
             'mid_block.attentions.0', 'mid_block.attentions.0.to_k', 'up_blocks.1.upsamplers.0', 'time_proj']  # fmt: skip
    assert sensible_taps(names) == [names[k] for k in (0, 2, 3, 5, 7)]


def test_denoisers_unlike_the_papers_have_no_aliases():
    odd = dict(UNET, down_block_types=('KDownBlock2D', 'AttnDownBlock2D'))
    denoiser = uncut_denoiser(
        dict(denoiser=dict(type='mmdiffrep.PixelUNet', config=UNET), taps=['mid_block'])
    )
    assert any(row.aliases for row in tap_rows(denoiser, (16, 16)))
    denoiser.alias_config = odd
    assert not any(row.aliases for row in tap_rows(denoiser, (16, 16)))


def test_format_table():
    assert (
        format_table(['a', 'long'], [['x', 1], ['yy', 22]])
        == 'a   long\n--------\nx      1\nyy    22'
    )

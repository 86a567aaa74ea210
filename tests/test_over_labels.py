"""Quality over the number of labels, from the files of several comparisons."""

import importlib.util
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmdiffrep.utils.comparison.fairness import Findings
from mmdiffrep.utils.comparison.over_labels import read
from mmdiffrep.utils.comparison.report import Comparison, Line, as_data
from mmdiffrep.utils.comparison.runs import Result
from mmdiffrep.visualization.curves import draw_spreads

ROOT = Path(__file__).resolve().parents[1]
SCORES = {
    'ours_2k_camvid': {5: [30.0, 32.0, 34.0], 20: [40.0, 40.0, 43.0]},
    'random_2k_camvid': {5: [10.0, 10.0, 10.0], 20: [12.0, 14.0, 16.0]},
}


def write(path, count, tag=None, scores=SCORES):
    """A file as tools/compare.py writes it."""
    lines = []
    for name, found in scores.items():
        denoiser = (
            dict(random_seed=0) if 'random' in name else dict(pretrained='mmdiffrep/toy-unet')
        )
        points = [
            [(0.5, {'mIoU': 1.0}), (1.0, {'mIoU': v, 'ddpm_seg/mIoU': v / 2})] for v in found[count]
        ]
        cfg = dict(model=dict(backbone=dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser)))
        lines.append(Line(name, name, cfg, {}, [Result(p, 'validation', 1.0) for p in points]))
    comparison = Comparison(
        lines, ['mIoU', 'ddpm_seg/mIoU'], tag or f'{count}-labels', Findings([], [])
    )
    path.write_text(json.dumps(as_data(comparison)))
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f'{n}.json', n) for n in (20, 5)]


@pytest.fixture
def tool():
    path = ROOT / 'tools' / 'plot_labels.py'
    spec = importlib.util.spec_from_file_location('tools_plot_labels', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_means_and_deviations_by_hand(files):
    found = read(files)
    assert found.counts == [5, 20] and found.metric == 'mIoU'
    assert found.curves() == {
        'ours': [(5, 32.0, 2.0), (20, 41.0, pytest.approx(3**0.5))],
        'random': [(5, 10.0, 0.0), (20, 14.0, 2.0)],
    }
    assert found.pretrained == {'ours_2k_camvid': True, 'random_2k_camvid': False}
    rows = [re.findall(r'[^|\s][^|]*[^|\s]|\w', line) for line in found.markdown().splitlines()]
    assert rows[0] == ['mIoU, labels:', '5', '20']
    assert rows[2] == ['ours', '32.0 ± 2.0', '41.0 ± 1.7'] and rows[3] == [
        'random',
        '10.0 ± 0.0',
        '14.0 ± 2.0',
    ]
    assert 'over 3 seeds' in found.markdown()


def test_another_metric_and_other_names(files):
    found = read(files, metric='ddpm_seg/mIoU')
    assert found.curves(['a', 'b'])['a'] == [(5, 16.0, 1.0), (20, 20.5, pytest.approx(0.75**0.5))]
    with pytest.raises(ValueError, match="'mAcc' was not logged; logged: ddpm_seg/mIoU, mIoU"):
        read(files, metric='mAcc')
    for names in (['a'], ['a', 'a']):
        with pytest.raises(ValueError, match='give a different one for each'):
            found.named(names)


def test_a_config_may_lack_a_number_of_labels(tmp_path, files):
    more = write(tmp_path / '50.json', 50, scores={'ours_2k_camvid': {50: [50.0]}})
    found = read([*files, more])
    assert '–' in found.markdown().splitlines()[3]
    assert len(found.curves()['ours']) == 3 and len(found.curves()['random']) == 2
    assert found.curves()['ours'][-1] == (50, 50.0, 0.0) and 'over 1 to 3 seeds' in found.markdown()


def test_configs_of_one_number_may_lie_in_several_files(tmp_path, files):
    other = write(tmp_path / 'stock.json', 5, '5 labels, stock', {'stock_2k_camvid': {5: [20.0]}})
    found = read([*files, other])
    assert found.counts == [5, 20] and found.curves()['stock'] == [(5, 20.0, 0.0)]
    assert list(found.curves()) == ['ours', 'stock', 'random']


def test_wrong_files_are_refused(tmp_path, files):
    with pytest.raises(FileNotFoundError, match=r'x\.json: no such file\. There are: .*20\.json'):
        read([str(tmp_path / 'x.json')])
    odd = write(tmp_path / 'odd.json', 5, tag='few')
    with pytest.raises(ValueError, match="the tag 'few', which names no number"):
        read([odd])
    assert read([odd, files[0]], [3, 20]).counts == [3, 20]
    with pytest.raises(ValueError, match='has ours_2k_camvid with 5 labels, as a file before it'):
        read([*files, files[1]])
    with pytest.raises(ValueError, match='1 numbers of labels were given for 2 files'):
        read(files, [1])
    for text in ('{', '{}', '[]', '{"metrics": ["a"], "tag": "", "configs": []}'):
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(ValueError, match='is not what tools/compare.py writes'):
            read([str(tmp_path / 'bad.json')])


def test_the_tool_writes_a_picture_and_a_table(tool, files, tmp_path, capsys):
    out = tmp_path / 'drawn' / 'over.png'
    assert tool([*files, '--out', str(out), '--title', 'CamVid']) == 0
    assert '32.0 ± 2.0' in capsys.readouterr().out
    assert '41.0 ± 1.7' in out.with_suffix('.md').read_text()
    picture = cv2.imread(str(out))
    assert picture.shape[1] > 600
    assert tool([*files, '--out', str(tmp_path / 'over.jpg')]) == 2
    assert 'ends in .png' in capsys.readouterr().err


def test_lines_are_drawn_where_the_numbers_are():
    """Two pictures that differ in a deviation differ, and a hollow mark is white inside."""
    points = dict(a=[(5, 10.0, 1.0), (50, 20.0, 1.0)])
    plain, wide = (
        draw_spreads(points, 'x', 'y'),
        draw_spreads(dict(a=[(5, 10.0, 3.0), (50, 20.0, 1.0)]), 'x', 'y'),
    )
    hollow = draw_spreads(points, 'x', 'y', hollow=['a'], note='hollow: none')
    assert not np.array_equal(plain, wide)
    blue = np.array([0x00, 0x72, 0xB2])
    assert (hollow == blue).all(-1).sum() < (plain == blue).all(-1).sum()
    for curves in ({}, dict(a=[(0, 1.0, 0.0)])):
        with pytest.raises(ValueError, match='cannot be drawn on a logarithmic axis'):
            draw_spreads(curves, 'x', 'y')

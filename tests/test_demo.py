"""tools/demo.py and tools/demo_backbones.py: what they run, read from logs and draw; their trainings are those of tools/train.py."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config, DictAction
from torch import nn

from mmdiffrep.datasets.toyscenes import generate_scene
from mmdiffrep.datasets.toyscenes.classes import HELD_OUT, STUFF, THINGS
from mmdiffrep.diffusion import loading
from mmdiffrep.openvocab.coco_export import read_panoptic_png
from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.utils.checkpoints import metadata, weight_file
from mmdiffrep.utils.demo import (
    PROGRESS,
    draw_features,
    progress_line,
    read_scores,
    run_tool,
    shown_command,
)
from mmdiffrep.visualization import write_picture

ROOT = Path(__file__).parents[1]
UNET = dict(
    sample_size=64, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def backbones():
    yield load_tool('demo_backbones')
    del sys.modules['demo_backbones']


@pytest.fixture(scope='module')
def demo():
    yield load_tool('demo')
    del sys.modules['demo']


# ---- what both share -----------------------------------------------------------------------------------------------


def test_their_configs_are_there(demo, backbones):
    for path in (backbones.DIFFUSION, backbones.STOCK, demo.CONFIG, demo.CONTINUED):
        assert path.is_file()


def test_the_last_scores_of_the_newest_log_are_read(tmp_path):
    for stamp, values in (('20260101_000000', [90.0]), ('20260102_000000', [10.0, 20.5])):
        folder = tmp_path / stamp / 'vis_data'
        folder.mkdir(parents=True)
        lines = [{'loss': 1.0, 'step': 1}, *({'mIoU': value, 'step': 2} for value in values)]
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    assert read_scores(tmp_path, 'mIoU') == {'mIoU': 20.5, 'step': 2}
    tested = tmp_path / '20260103_000000'  # a test leaves one file of another name
    tested.mkdir()
    (tested / '20260103_000000.json').write_text('{"mIoU": 30.0, "time": 1.0}')
    assert read_scores(tmp_path, 'mIoU')['mIoU'] == 30
    with pytest.raises(RuntimeError, match='with PQ: it was not validated'):
        read_scores(tmp_path, 'PQ')


def test_progress_shows_losses_and_our_warnings_only():
    shown = [
        '2026/01/01 00:00:00 - mmengine - INFO - Iter(train) [ 50/300]  lr: 1e-3  loss: 1.0',
        '2026/01/01 00:00:00 - mmengine - INFO - Iter(val) [13/13]    aAcc: 50.0  mIoU: 20.0',
        '/x/mmdiffrep/models/backbones/checks.py:30: UserWarning: the first batch …',
    ]
    hidden = [
        '/x/mmseg/models/builder.py:36: UserWarning: ``build_loss`` would be deprecated',
        '2026/01/01 00:00:00 - mmengine - INFO - Hooks will be executed in the following order:',
    ]
    assert [bool(PROGRESS.search(line)) for line in shown + hidden] == [True] * 3 + [False] * 2
    assert progress_line(shown[0]) == 'Iter(train) [ 50/300]  lr: 1e-3  loss: 1.0'
    long = progress_line('x - INFO - ' + 'loss: 1.0  ' * 40)
    assert len(long) <= 150 and long.startswith('loss: 1.0  loss') and long.endswith(' …')


def test_a_command_can_be_typed_where_it_is_run(tmp_path):
    command = [tmp_path / 'tools' / 'train.py', '--vocab', 'a; b', Path('/x.py')]
    assert (
        shown_command(command, tmp_path / 'out') == "python ../tools/train.py --vocab 'a; b' /x.py"
    )


def test_a_tool_runs_in_its_folder_and_is_logged(tmp_path, capsys):
    tool = tmp_path / 'tool.py'
    tool.write_text(
        "import os, sys\nprint('x - INFO - Iter(train) [1/1]', os.getcwd(), *sys.argv[1:])\nprint('other')"
    )
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'old').touch()
    assert run_tool([tool, 'x'], tmp_path / 'run', tmp_path) > 0
    assert capsys.readouterr().out == f'  Iter(train) [1/1] {tmp_path} x\n'
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['output.log']
    assert 'other' in (tmp_path / 'run' / 'output.log').read_text()


def test_a_failed_tool_shows_its_end(tmp_path):
    tool = tmp_path / 'tool.py'
    tool.write_text("print('out of luck')\nraise SystemExit(3)")
    with pytest.raises(RuntimeError, match=r'tool.py failed(.|\n)*out of luck'):
        run_tool([tool], tmp_path / 'run', tmp_path)
    assert (tmp_path / 'run' / 'output.log').read_text() == 'out of luck\n'


def test_feature_pictures(tmp_path):
    backbone = dict(
        type='mmdiffrep.DiffusionBackbone', timesteps=10, taps=['mid_block'],
        denoiser=dict(type='mmdiffrep.PixelUNet', config=UNET),
    )  # fmt: skip
    config = Config(dict(model=dict(backbone=backbone)))
    images = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    files = draw_features(config, images, tmp_path)
    assert [path.name for path, _ in files] == ['features_taps.png', 'features_blocks.png']
    first, second = (cv2.imread(str(path)) for path, _ in files)
    assert second.shape[1] > first.shape[1]  # image + 5 blocks; image + 1 tap
    (only,) = draw_features(config, images, tmp_path / 'taps', blocks=False)
    np.testing.assert_array_equal(cv2.imread(str(only[0])), first)


# ---- tools/demo_backbones.py ---------------------------------------------------------------------------------------


def test_the_table_counts_what_is_trained(backbones, tmp_path):
    model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    text = backbones.summary([backbones.Run('small', tmp_path, 12.345, 6.7, model)])
    assert text.splitlines()[2].split() == ['small', '12.35', '12', '7']


# ---- tools/demo.py -------------------------------------------------------------------------------------------------


def test_what_is_asked_for_has_every_unseen_pair(demo):
    words = Vocabulary.parse(' '.join(demo.WORDS.split()))
    names = {name for category in words.categories for name in category.names}
    assert set(HELD_OUT) < names
    assert {c.name for c in words.categories if not c.is_thing} == set(STUFF)


def test_it_goes_on_with_what_ships_at_a_smaller_rate(demo):
    first, second = Config.fromfile(demo.CONFIG), Config.fromfile(demo.CONTINUED)
    assert second.model == first.model and second.train_dataloader == first.train_dataloader
    assert second.load_from == demo.WEIGHTS and first.load_from is None
    assert second.optim_wrapper.optimizer.lr <= 0.1 * first.optim_wrapper.optimizer.lr
    assert 200 <= second.train_cfg.max_iters <= 300
    assert (
        second.param_scheduler[-1].end
        == second.train_cfg.max_iters
        == second.train_cfg.val_interval
    )


@pytest.mark.parametrize('iters', [1, 5, 1000])
def test_a_training_of_another_length_ends_at_rate_0(demo, iters):
    assert demo.continuing(demo.WEIGHTS, None) == []
    config = Config.fromfile(demo.CONTINUED)
    flag, *options = demo.continuing('other.pth', iters)
    parser = argparse.ArgumentParser()
    parser.add_argument(flag, nargs='+', action=DictAction)
    config.merge_from_dict(parser.parse_args([flag, *options]).cfg_options)
    warm, fall = config.param_scheduler
    assert warm.begin <= fall.begin < fall.end == config.train_cfg.max_iters == iters
    assert config.load_from == 'other.pth'


def test_its_tools_are_run_in_its_folder_with_a_work_dir_each(demo, tmp_path, monkeypatch, capsys):
    ran = []

    def run_tool(command, work_dir, folder):
        ran.append((command, work_dir, folder))
        (work_dir / '1').mkdir(parents=True)
        (work_dir / '1' / '1.json').write_text('{"panoptic/PQ": 5.0}')
        return 7.0

    monkeypatch.setattr(demo, 'run_tool', run_tool)
    command = [ROOT / 'tools/test.py', demo.CONFIG, 'x', '--cfg-options', 'model.clip=None']
    assert demo.run(2, 'so', command, 'name', tmp_path) == {'panoptic/PQ': 5.0, 'seconds': 7.0}
    ((argv, work_dir, folder),) = ran
    assert argv[2:] == ['x', '--work-dir', 'work_dirs/name', '--cfg-options', 'model.clip=None']
    assert (work_dir, folder) == (tmp_path / 'work_dirs/name', tmp_path)
    assert '--cfg-options model.clip=None' in capsys.readouterr().out


def test_its_table_has_seen_and_unseen_with_chance(demo):
    scores = {
        'panoptic/PQ': 1.04,
        'panoptic/PQ_th_seen': 2.0,
        'panoptic/PQ_th_unseen': 3.0,
        'panoptic/PQ_st': 4.0,
    }
    text = demo.table({'as it ships': dict(scores, seconds=59.6)})
    assert text.splitlines()[2].split()[-5:] == ['1.0', '2.0', '3.0', '4.0', '60']
    assert (
        '2.1 for seen' in text
        and '4.2 for unseen' in text
        and '14.3' in text
        and 'red star' in text
    )


def test_chance_is_what_names_by_lot_give():
    """The figure that the table states, by counting: perfect masks, a random name each."""
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 36, (2, 200_000))
    quality = []
    for number in range(36):
        right = ((truth == number) & (guess == number)).sum()
        wrong = ((truth == number) ^ (guess == number)).sum()
        quality.append(right / (right + wrong / 2))
    assert 100 * np.mean(quality) == pytest.approx(100 / 36, abs=0.1)


def test_its_sheet_shows_truth_and_both_answers(demo):
    scenes = [generate_scene(0, number, (32, 48), 'val_heldout') for number in range(2)]
    ids, segments = demo.truth(scenes[0])
    things = {(s['id'], s['name']) for s in segments if s['name'] in THINGS}
    for thing in scenes[0].things:
        (found,) = {int(i) for i in np.unique(ids[thing.mask])}
        assert (found, thing.name) in things
    answer = SimpleNamespace(
        ids=ids, segments=[dict(s, name=f'my {s["name"]}', score=0.5) for s in segments]
    )
    same = SimpleNamespace(ids=ids, segments=segments)
    nothing = SimpleNamespace(ids=np.zeros_like(ids), segments=[])
    sheet = demo.draw(scenes, [same, nothing], [answer, nothing])
    assert sheet.dtype == np.uint8 and sheet.shape[1] > 4 * demo.SIDE
    rows = demo.draw(scenes[:1], [same], [answer]).shape[0]
    assert sheet.shape[0] > rows + 200


def test_colours_of_classes_differ_and_things_look_as_they_are_called(demo):
    colours = demo.class_colours()
    assert set(colours) == {*THINGS, *STUFF} and len({tuple(c) for c in colours.values()}) == 43
    for name, loud in (('red', 0), ('green', 1), ('blue', 2)):
        assert all(np.argmax(colours[thing]) == loud for thing in THINGS if thing.startswith(name))


def test_without_its_weights_it_says_so(demo, tmp_path, capsys):
    assert demo.main(['--out', str(tmp_path / 'out'), '--weights', 'mmdiffrep/toy-odisee']) == 1
    assert 'error: weights' in capsys.readouterr().err and not (tmp_path / 'out').exists()


# ---- what ships ----------------------------------------------------------------------------------------------------

SHIPPED = loading.SHIPPED / 'toy-odise'


@pytest.mark.skipif(not SHIPPED.is_dir(), reason='mmdiffrep/toy-odise does not ship yet')
class TestShipped:
    def test_it_is_small_and_names_its_config(self, demo):
        file = weight_file(demo.WEIGHTS)
        assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 8e6
        assert metadata(file)['config'] == demo.CONFIG.stem == load_tool('segment').CONFIG
        card = (SHIPPED / 'README.md').read_text()
        for line in (
            'library_name: mmdiffrep',
            'license:',
            'tools/train.py configs/odise/',
            'seed: ',
            'mmdiffrep/toy-unet',
        ):
            assert line in card, line

    def test_segment_works_as_it_comes(self, tmp_path, capsys):
        """New scenes in a line of words: stuff is mostly right, and things are found that training never showed."""
        words = '; '.join([*THINGS, *(f'{name} (stuff)' for name in STUFF)])
        scenes = [generate_scene(4321, number, (64, 64), 'val_heldout') for number in range(8)]
        for number, scene in enumerate(scenes):
            write_picture(tmp_path / 'in' / f'{number}.png', scene.image)
        segment = load_tool('segment')
        assert (
            segment.main([str(tmp_path / 'in'), '--vocab', words, '--out', str(tmp_path / 'out')])
            == 0
        )
        assert 'score' in capsys.readouterr().out
        right = total = 0
        named = set()
        for number, scene in enumerate(scenes):
            found = json.loads((tmp_path / 'out/segments' / f'{number}.json').read_text())
            ids = read_panoptic_png(tmp_path / 'out/panoptic' / f'{number}.png')
            named |= {s['name'] for s in found['segments'] if s['isthing']}
            free = scene.semantic() < len(STUFF)
            names = {s['id']: s['name'] for s in found['segments']}
            total += free.sum()
            right += sum(
                ((ids == i) & free & (scene.stuff == STUFF.index(n))).sum()
                for i, n in names.items()
                if n in STUFF
            )
        assert right / total > 0.4  # by lot: 0.14
        assert named


def test_chance_is_that_of_drawn_names(demo):
    """A thousand scenes' worth of perfect masks: class 0 is three times as frequent as the mean of four."""
    draws = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), [75000, 10000, 10000, 5000])
    named = draws.integers(4, size=len(truth))
    right = ((truth == 0) & (named == 0)).sum()
    pq = right / (((truth == 0).sum() + (named == 0).sum()) / 2)
    assert demo.by_lot(4, 3.0) == pytest.approx(100 * pq, abs=0.3)
    assert demo.by_lot(7) == pytest.approx(100 / 7)

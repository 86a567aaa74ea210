"""The uncertainty in colours, its sheet, and the visualiser that mmseg's hook calls."""

import cv2
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from mmengine.structures import PixelData

import mmdiffrep  # noqa: F401
from mmdiffrep.registry import VISUALIZERS
from mmdiffrep.visualization import draw_uncertainty, overlay, uncertainty_map
from mmdiffrep.visualization.panoptic import luminance
from mmdiffrep.visualization.uncertainty import uncertainty_scale

pytest.importorskip('mmseg')
from mmseg.engine.hooks import SegVisualizationHook  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

CLASSES, PALETTE = ('wall', 'bed', 'lamp'), [[200, 30, 30], [30, 200, 30], [30, 30, 200]]
INFERNO = (np.asarray(colormaps['inferno'].colors) * 255).round().astype(np.uint8)


def scene(height=30, width=40):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    truth = rng.integers(0, 2, (height, width))
    truth[0] = 255
    pred = rng.integers(0, 2, (height, width))
    return image, truth, pred, rng.random((height, width)).astype(np.float32)


def contains(sheet, picture):
    """Whether a picture stands in a sheet."""
    middle, (height, width) = len(picture) // 2, picture.shape[:2]
    row = picture[middle].tobytes()
    for y in range(middle, len(sheet) - height + middle + 1):
        line = sheet[y].tobytes()
        places = [m // 3 for m in range(0, len(line), 3) if line.startswith(row, m)]
        if any(
            np.array_equal(sheet[y - middle : y - middle + height, x : x + width], picture)
            for x in places
        ):
            return True
    return False


def test_colours_by_hand():
    drawn = uncertainty_map(np.array([[0.0, 0.4, 0.8]]))
    assert drawn.dtype == np.uint8 and drawn[0, [0, 2]].tolist() == INFERNO[[0, 255]].tolist()
    assert drawn[0, 1].tolist() == INFERNO[128].tolist()
    # what is above the top is as bright as the top
    drawn = uncertainty_map(np.array([[0.0, 0.4, 0.8]]), top=0.4)
    assert drawn[0].tolist() == INFERNO[[0, 255, 255]].tolist()
    # certain everywhere, up to rounding
    assert (uncertainty_map(np.full((2, 2), -1e-7)) == INFERNO[0]).all()


def test_brighter_is_less_certain():
    light = [luminance(c) for c in uncertainty_map(np.linspace(0, 2, 64)[None])[0]]
    assert all(a < b for a, b in zip(light, light[1:]))


@pytest.mark.parametrize(
    'values, top, message',
    [
        (np.zeros((1, 2, 2)), None, r'must be \(H, W\), got \(1, 2, 2\)'),
        (np.array([[-0.5, 1]]), None, r'between -0\.5 and 1'),
        (np.array([[np.nan, 1]]), None, 'needed: finite values'),
        (np.zeros((2, 2)), 0, 'top=0 does not fit'),
    ],
)
def test_what_is_no_uncertainty_is_refused(values, top, message):
    with pytest.raises(ValueError, match=message):
        uncertainty_map(values, top)


def test_the_sheet_shows_image_labels_prediction_and_uncertainty():
    image, truth, pred, values = scene(240, 320)
    sheet = draw_uncertainty(image, pred, values, CLASSES, PALETTE, truth, image_uncertainty=0.25)
    for panel in (
        image,
        overlay(image, truth, PALETTE),
        overlay(image, pred, PALETTE),
        uncertainty_map(values),
    ):
        assert contains(sheet, panel)
    scale = uncertainty_scale(float(values.max()), 460, 0.25)
    assert contains(sheet, scale) and not contains(sheet, uncertainty_scale(9, 460, 0.25))
    without = draw_uncertainty(image, pred, values, CLASSES, PALETTE)
    assert sheet.shape[1] - without.shape[1] == 320 + 8
    colours = {tuple(c) for c in without.reshape(-1, 3).tolist()}
    # the legend's swatches: of the classes that occur
    assert {tuple(c) for c in PALETTE[:2]} <= colours and tuple(PALETTE[2]) not in colours


def test_small_pictures_are_enlarged_and_sizes_must_agree():
    image, truth, pred, values = scene()
    sheet = draw_uncertainty(image, pred, values, CLASSES, PALETTE, truth)
    assert sheet.shape[1] >= 4 * 320 and sheet.shape[0] > 240
    assert contains(sheet, np.kron(uncertainty_map(values), np.ones((8, 8, 1), np.uint8)))
    with pytest.raises(
        ValueError, match=r'the uncertainty is \(29, 40\) and the image \(30, 40, 3\)'
    ):
        draw_uncertainty(image, pred, values[1:], CLASSES, PALETTE)


# ---- the visualiser -------------------------------------------------------------------------------------------


def visualizer(tmp_path, kind='mmdiffrep.UncertaintyVisualizer', **more):
    folder = str(tmp_path / f'{kind}{more}')
    backends = [dict(type='LocalVisBackend')]
    # mmengine keeps visualisers by name for the life of a process
    found = VISUALIZERS.build(
        dict(type=kind, name=folder, vis_backends=backends, save_dir=folder, **more)
    )
    found.dataset_meta = dict(classes=CLASSES, palette=PALETTE)
    return found


def data_sample(tmp_path, uncertain=True):
    image, truth, pred, values = scene()
    path = str(tmp_path / 'cow.png')
    cv2.imwrite(path, image[..., ::-1])
    sample = SegDataSample(metainfo=dict(img_path=path))
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(pred)[None])
    if uncertain:
        sample.uncertainty = PixelData(data=torch.from_numpy(values)[None])
        sample.set_field(0.5, 'image_uncertainty')
    return image, sample


def test_mmsegs_hook_draws_it(tmp_path, monkeypatch):
    image, sample = data_sample(tmp_path)
    drawer = visualizer(tmp_path, top=2.0)
    hook = SegVisualizationHook.__new__(SegVisualizationHook)
    hook._visualizer, hook.draw, hook.interval, hook.show, hook.wait_time, hook.backend_args = (
        drawer,
        True,
        1,
        False,
        0,
        None,
    )
    hook._after_iter(type('Runner', (), dict(iter=7)), 0, {}, [sample], mode='test')
    (file,) = tmp_path.rglob('test_cow*.png')
    assert file.name == 'test_cow.png_7.png'
    _, truth, pred, values = scene()
    wanted = draw_uncertainty(
        image, pred, values, CLASSES, PALETTE, truth, top=2.0, image_uncertainty=0.5
    )
    assert np.array_equal(cv2.imread(str(file))[..., ::-1], wanted)


def test_a_file_and_no_labels(tmp_path):
    image, sample = data_sample(tmp_path)
    out = tmp_path / 'drawn' / 'cow.png'
    visualizer(tmp_path).add_datasample('cow', image, sample, draw_gt=False, out_file=str(out))
    _, _, pred, values = scene()
    wanted = draw_uncertainty(image, pred, values, CLASSES, PALETTE, image_uncertainty=0.5)
    assert np.array_equal(cv2.imread(str(out))[..., ::-1], wanted)


def test_other_predictions_are_drawn_as_mmseg_does(tmp_path):
    image, sample = data_sample(tmp_path, uncertain=False)
    drawn = []
    for kind in ('mmdiffrep.UncertaintyVisualizer', 'mmseg.SegLocalVisualizer'):
        out = tmp_path / f'{kind}.png'
        visualizer(tmp_path, kind).add_datasample('cow', image, sample, out_file=str(out))
        drawn.append(cv2.imread(str(out)))
    assert np.array_equal(*drawn)
    with pytest.raises(ValueError, match='top=-1'):
        visualizer(tmp_path, top=-1)

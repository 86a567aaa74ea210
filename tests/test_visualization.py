"""Pictures: PCA against numpy's SVD, overlays by hand, sheets by their pixels."""

import cv2
import numpy as np
import pytest
import torch

from mmdiffrep.visualization import (
    contact_sheet,
    feature_sheet,
    label_colours,
    legend,
    overlay,
    pca_rgb,
    principal_components,
    text_picture,
    write_picture,
)


def correlated(n=200, c=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=g) @ torch.randn(c, c, generator=g) + 3


def test_components_agree_with_numpys_svd():
    samples = correlated()
    mean, components, variances = principal_components(samples)
    x = samples.double().numpy()
    _, singular, vectors = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-12)
    np.testing.assert_allclose(variances, singular[:3] ** 2 / len(x), rtol=1e-9)
    np.testing.assert_allclose(abs((components.numpy() * vectors[:3]).sum(1)), 1, atol=1e-9)


def test_component_signs_do_not_depend_on_the_order_of_samples():
    samples = correlated()
    shuffled = samples[torch.randperm(len(samples), generator=torch.Generator().manual_seed(1))]
    first, second = principal_components(samples)[1], principal_components(shuffled)[1]
    torch.testing.assert_close(first, second)
    assert (first.gather(1, first.abs().argmax(1, keepdim=True)) > 0).all()


def test_pca_rgb_is_a_stretched_score():
    maps = correlated(2 * 5 * 6, 4).reshape(2, 5, 6, 4).permute(0, 3, 1, 2)
    rgb = pca_rgb(maps, spread=0)
    assert rgb.shape == (2, 5, 6, 3) and rgb.dtype == np.uint8
    x = maps.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    x = x - x.mean(0)
    vectors = np.linalg.svd(x, full_matrices=False)[2][:3]
    for k in range(3):
        vector = vectors[k] * np.sign(vectors[k][abs(vectors[k]).argmax()])
        score = x @ vector
        wanted = 255 * (score - score.min()) / np.ptp(score)
        assert abs(rgb[..., k].reshape(-1) - wanted).max() <= 0.5 + 1e-6


def test_shared_components_give_one_colour_one_meaning():
    one = correlated(36, 5).T.reshape(1, 5, 6, 6)
    both = torch.cat([one, one])
    np.testing.assert_array_equal(*pca_rgb(both))
    np.testing.assert_array_equal(pca_rgb(both, shared=False)[0], pca_rgb(one)[0])
    shifted = torch.cat([one, one + 50])
    assert (pca_rgb(shifted)[0] != pca_rgb(shifted)[1]).any()
    np.testing.assert_array_equal(*pca_rgb(shifted, shared=False))


def test_components_that_do_not_vary_are_grey():
    assert (pca_rgb(torch.ones(1, 4, 3, 3)) == 128).all()
    two = pca_rgb(torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert (two[..., 2] == 128).all() and two[..., :2].std() > 0


@pytest.mark.parametrize(
    'bad', [torch.zeros(3), torch.zeros(0, 4), torch.full((4, 4), float('nan'))]
)
def test_bad_samples_are_refused(bad):
    with pytest.raises(ValueError, match='samples'):
        principal_components(bad)


def test_labels_and_overlay_by_hand():
    palette = [[255, 0, 0], [0, 0, 200]]
    labels = np.array([[0, 1], [255, 1]], np.uint8)
    np.testing.assert_array_equal(
        label_colours(labels, palette), [[[255, 0, 0], [0, 0, 200]], [[0, 0, 0], [0, 0, 200]]]
    )
    image = np.full((2, 2, 3), 100, np.uint8)
    drawn = overlay(image, labels, palette, opacity=0.5, outline=False)
    np.testing.assert_array_equal(drawn[0], [[178, 50, 50], [50, 50, 150]])  # 177.5 rounds to even
    np.testing.assert_array_equal(drawn[1, 0], [100, 100, 100])
    outlined = overlay(image, labels, palette, opacity=0.5)
    np.testing.assert_array_equal(outlined[0, 0], drawn[0, 0])
    assert outlined[0, 1].sum() < drawn[0, 1].sum()
    assert overlay(image, labels, palette, side=8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match='one height and width'):
        overlay(image, labels[:1], palette)


def test_sheet_keeps_pixels_and_checks_titles():
    tile = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    sheet = contact_sheet([[tile, None], [tile, tile]], gap=4)
    assert sheet.shape == (8 + 12 + 4 + 12 + 8, 8 + 20 + 4 + 20 + 8, 3)
    np.testing.assert_array_equal(sheet[8:20, 8:28], tile)
    np.testing.assert_array_equal(sheet[24:36, 32:52], tile)
    assert (sheet[8:20, 32:52] == 255).all()
    titled = contact_sheet([[tile]], ['a much wider title'], ['row'], 'title', tile)
    assert titled.shape[1] > sheet.shape[1] and (titled < 128).any()
    with pytest.raises(ValueError, match='2 column titles were given for 1'):
        contact_sheet([[tile]], ['a', 'b'])
    with pytest.raises(ValueError, match='at least one picture'):
        contact_sheet([])


def test_text_fits_and_legend_shows_every_colour():
    short, long = text_picture('i'), text_picture('$ice & fire$ 64×64\nsecond line')
    assert long.shape[1] > short.shape[1] and long.shape[0] > 1.5 * short.shape[0]
    for edge in (long[0], long[-1], long[:, 0], long[:, -1]):
        assert (edge > 128).all()  # nothing is cut off
    palette = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    drawn = legend(['one', 'two', 'three'], palette, width=120)
    assert drawn.shape[1] == 120
    for colour in palette:
        assert (drawn == colour).all(-1).sum() > 50
    with pytest.raises(ValueError, match='one colour a name'):
        legend(['one'], palette, 100)


def test_feature_sheet_and_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 3), dtype=np.uint8)
    maps = {
        'up_blocks.1.attentions.0': torch.randn(2, 6, 2, 4),
        'mid_block': torch.randn(2, 3, 1, 2),
    }
    sheet = feature_sheet(images, maps, strides={'mid_block': 8}, row_titles=['a', 'b'], side=64)
    assert sheet.ndim == 3 and sheet.dtype == np.uint8 and sheet.shape[1] > 3 * 64
    path = write_picture(tmp_path / 'new' / 'sheet.png', sheet)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], sheet)
    assert [entry.name for entry in path.parent.iterdir()] == ['sheet.png']
    with pytest.raises(ValueError, match='1 maps for 2 images'):
        feature_sheet(images, {'mid_block': torch.randn(1, 3, 1, 2)})

"""The page: what a click answers, and a click in a real browser where there is one."""

import os

import numpy as np
import pytest
from mmengine.config import Config

import mmdiffrep  # noqa: F401
from mmdiffrep.apis import Matcher
from mmdiffrep.apis.match_page import HINT, MatchPage, pictures


@pytest.fixture
def page():
    return MatchPage(Matcher(Config(dict(model=dict(type='mmdiffrep.PointMatcher', backbone=dict(type='mmdiffrep.DenseSift', stride=4))))))


@pytest.fixture
def images():
    image = np.kron(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8), np.ones((5, 5, 1), np.uint8))
    return image, np.roll(image, 20, 1)


def test_a_click_is_answered(page, images):
    joined, heat, said = page.click(*images, (61, 41))
    assert said.startswith('(61, 41) lies at (8') and 'cosine' in said
    assert heat.shape == (480, 640, 3) and joined.shape[0] == 480 and joined.shape[1] > 1280
    assert page.click(None, images[1], (3, 3)) == (None, None, HINT)
    assert page.click(*images, (500, 3))[2].startswith('error: point x, y = [500.0, 3.0] lies outside')


def test_small_pictures_are_enlarged(tmp_path):
    import cv2

    for name, side in (('small.png', 40), ('large.png', 700)):
        cv2.imwrite(str(tmp_path / name), np.zeros((side, side, 3), np.uint8))
    assert [x.shape[0] for x in pictures([str(tmp_path / 'small.png'), str(tmp_path / 'large.png')])] == [320, 700]
    with pytest.raises(FileNotFoundError, match='other.png'):
        pictures(['other.png'])


def test_a_click_in_a_browser(page, images):
    """Chromium by playwright; another one: MMDIFFREP_CHROMIUM=/path/to/chromium."""
    pytest.importorskip('gradio')
    sync = pytest.importorskip('playwright.sync_api')
    path = os.environ.get('MMDIFFREP_CHROMIUM')
    with sync.sync_playwright() as p:
        try:
            browser = p.chromium.launch(executable_path=path, args=['--no-sandbox', '--single-process', '--no-zygote', '--disable-gpu'])
        except sync.Error as error:
            pytest.skip(f'no browser: {str(error).splitlines()[0]}')
        blocks = page.blocks(*images)
        _, address, _ = blocks.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True)
        try:
            tab = browser.new_page(viewport=dict(width=1300, height=1200))
            tab.goto(address)
            first = tab.locator('#first img').first
            first.wait_for(timeout=60000)
            box = first.bounding_box()
            # the image's 160×120 pixels, however large they are shown
            tab.mouse.click(box['x'] + box['width'] * 61.5 / 160, box['y'] + box['height'] * 41.5 / 120)
            tab.locator('#heat img').wait_for(timeout=60000)
            said = tab.locator('#found textarea').input_value()
        finally:
            browser.close()
            blocks.close()
    assert said.startswith('(6') and ') lies at (8' in said

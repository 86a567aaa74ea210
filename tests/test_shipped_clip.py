"""The CLIP that ships: it loads by its short name, knows ToyScenes' colours and shapes, and its text tower converts."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

open_clip = pytest.importorskip('open_clip')

from mmdiffrep.datasets.coco import square_crop  # noqa: E402
from mmdiffrep.datasets.toyscenes import generate_scene  # noqa: E402
from mmdiffrep.datasets.toyscenes.classes import HELD_OUT, THINGS  # noqa: E402
from mmdiffrep.diffusion.loading import locate, shipped_models  # noqa: E402
from mmdiffrep.openvocab import clip_text_model, load_clip  # noqa: E402

NAME = 'mmdiffrep/toy-clip'


@pytest.fixture(scope='module')
def shipped():
    assert NAME in shipped_models()
    return load_clip(NAME)


def test_names_of_things_it_sees_for_the_first_time(shipped):
    """Scenes of a seed that it was not trained on; what is asked is well above guessing, and below what is measured."""
    model, preprocess, tokenizer = shipped
    crops, labels = [], []
    for index in range(60):
        scene = generate_scene(1000, index, (128, 128), 'val_heldout')
        for thing in scene.things:
            box = cv2.boundingRect(thing.mask.astype(np.uint8))
            if min(box[2:]) >= 12:
                crops.append(preprocess(Image.fromarray(square_crop(scene.image, box, 1.25))))
                labels.append(THINGS.index(thing.name))
    with torch.no_grad():
        images = model.encode_image(torch.stack(crops), normalize=True)
        texts = model.encode_text(tokenizer(list(THINGS)), normalize=True)
    guesses, labels = (images @ texts.T).argmax(1), torch.tensor(labels)
    held = torch.tensor([name in HELD_OUT for name in THINGS])[labels]
    right = guesses == labels
    colours, shapes = guesses // 6 == labels // 6, guesses % 6 == labels % 6
    assert len(labels) > 150 and held.sum() > 60
    assert colours.float().mean() > 0.7 and shapes[~held].float().mean() > 0.3
    assert right[~held].float().mean() > 0.25  # guessing: 0.028


def test_text_tower_is_transformers_own(shipped):
    model, _, tokenizer = shipped
    ids = tokenizer(
        [generate_scene(0, i, (16, 16)).caption() for i in range(8)] + ['', 'Something else!']
    )
    with torch.no_grad():
        found = clip_text_model(model)(ids)
        wanted = model.encode_text(ids)
    torch.testing.assert_close(
        found.pooler_output @ model.text_projection, wanted, rtol=0, atol=1e-5
    )


def test_files_are_small_and_the_card_says_how_they_were_made():
    folder = locate(NAME).path
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6
    card = (folder / 'README.md').read_text()
    for line in (
        'library_name: open_clip',
        'make_toyscenes.py',
        'seed: 0',
        'train.py configs/clip/',
        'held-out',
    ):
        assert line in card, line
    config = re.search(r'configs/clip/\S+\.py', card)[0]
    root = Path(__file__).parents[1]
    assert not (root / 'configs').is_dir() or (root / config).is_file()

#!/usr/bin/env python
"""The toy ODISE that ships: score it, train it on for some steps, and ask it about new pictures in words of your own."""

from __future__ import annotations

import argparse
import colorsys
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep.datasets.toyscenes import Scene, generate_scene, write_toyscenes
from mmdiffrep.datasets.toyscenes.classes import (
    COLOURS,
    HELD_OUT,
    SEMANTIC_PALETTE,
    SHAPES,
    STUFF,
    THINGS,
    panoptic_categories,
)
from mmdiffrep.datasets.toyscenes.writer import panoptic
from mmdiffrep.utils.demo import draw_features, read_scores, run_tool, shown_command
from mmdiffrep.utils.taps import format_table
from mmdiffrep.visualization import (
    contact_sheet,
    draw_panoptic,
    segment_colours,
    text_picture,
    write_picture,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/odise/odise_toy-unet_1200i_toyscenes-64x64.py'
CONTINUED = ROOT / 'configs/odise/odise_toy-unet_continued-250i_toyscenes-64x64.py'
WEIGHTS = 'mmdiffrep/toy-odise'

# What the new scenes are asked for: any words will do. Classes stand between ';', synonyms between ','. The first six are colours and
# shapes that the training never showed together.
WORDS = """
    red star; orange ring; yellow cross; green disc, green circle; blue square; purple triangle;
    red square; yellow disc; blue ring;
    sky (stuff); water, sea (stuff); grass, lawn (stuff); sand, beach (stuff); road, street (stuff); brick, wall (stuff); wood (stuff)
"""

SCENES = dict(train=200, val_heldout=100)  # as many as are trained on, and scored
SIZE = (64, 64)  # as the config's data are drawn
NEW, NEW_SEED = 5, 2026  # pictures to ask about
SIDE = 320  # of a picture on the sheet, pixels
SCORES = {'all': 'PQ', 'things, seen': 'PQ_th_seen', 'things, unseen': 'PQ_th_unseen', 'stuff': 'PQ_st'}  # fmt: skip


def by_lot(classes: int, frequency: float = 1.0) -> float:
    """PQ of perfect masks whose names are drawn by lot from ``classes``, for one that is ``frequency`` times as frequent as the mean one.

    Of its n things n / classes are named right; the mean number of things bears its name: PQ = TP / (TP + FP / 2 + FN / 2).
    """
    return 100 * (frequency / classes) / ((1 + frequency) / 2)


# half of the things in these scenes are of the unseen kinds
SEEN_FREQUENCY = len(THINGS) / 2 / (len(THINGS) - len(HELD_OUT))
UNSEEN_FREQUENCY = len(THINGS) / 2 / len(HELD_OUT)
CHANCE = (
    f'Chance: names drawn by lot give, on perfect masks, a PQ of {by_lot(len(THINGS), SEEN_FREQUENCY):.1f} for seen things, '
    f'{by_lot(len(THINGS), UNSEEN_FREQUENCY):.1f} for unseen ones, of which there are more each, {by_lot(len(STUFF)):.1f} for stuff.\n'
    f'Unseen are {len(HELD_OUT)} pairs of colour and shape that no training picture has: {", ".join(HELD_OUT)}.'
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'demo_output', help='folder to write')
    parser.add_argument('--iters', type=int, help="training iterations; default: the config's")
    parser.add_argument('--weights', default=WEIGHTS, help=f'to begin from; default {WEIGHTS}')
    args = parser.parse_args(argv)
    out, start = args.out.resolve(), time.perf_counter()
    try:
        demonstrate(out, args.weights, args.iters)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(
        f'\nDone in {time.perf_counter() - start:.0f} s. Logs and checkpoints: {out / "work_dirs"}'
    )
    return 0


def demonstrate(out: Path, weights: str, iters: int | None) -> None:
    """Raises: RuntimeError where a tool fails; FileNotFoundError, ValueError where the weights are not there."""
    from mmdiffrep.utils.checkpoints import weight_file

    weight_file(weights)  # a mistake first
    if Path(weights).exists():
        weights = str(Path(weights).resolve())  # the tools are run elsewhere
    say(
        1,
        f'ToyScenes: {SCENES["train"]} pictures to train on, {SCENES["val_heldout"]} to score, {NEW} to ask about',
    )
    # the configs look for data in the folder where a tool is run
    write_toyscenes(out / data_root(), SCENES, SIZE, workers=2)
    scenes = [generate_scene(NEW_SEED, number, SIZE, 'val_heldout') for number in range(NEW)]
    pictures = [
        write_picture(out / 'new_scenes' / f'{number}.png', scene.image)
        for number, scene in enumerate(scenes)
    ]
    test, train = ROOT / 'tools/test.py', ROOT / 'tools/train.py'
    shipped = run(2, 'as it ships', [test, CONFIG, weights], 'shipped', out)
    without = run(
        3, 'without CLIP’s look at the masks', [test, CONFIG, weights, '--cfg-options', 'model.clip=None'], 'without_clip', out
    )  # fmt: skip
    options = continuing(weights, iters)
    continued = run(4, 'trained on', [train, CONTINUED, *options], 'continued', out)
    files = ask(5, weights, scenes, pictures, out)
    print(
        f'\n{table({"as it ships": shipped, "without CLIP": without, "trained on": continued})}\n'
    )
    for path, what in files:
        print(f'{path}\n    {what}')


def read_config() -> Any:
    from mmengine.config import Config

    return Config.fromfile(CONFIG)


def data_root() -> str:
    return read_config().train_dataloader.dataset.data_root


def say(step: int, text: str) -> None:
    print(f'\n[demo {step}/5] {text}', flush=True)


def run(
    step: int, what: str, command: Sequence[str | Path], name: str, out: Path
) -> dict[str, Any]:
    """Run a tool in ``out`` and read its scores, with the seconds it took."""
    work_dir = Path('work_dirs', name)
    options = command.index('--cfg-options') if '--cfg-options' in command else len(command)
    command = [*command[:options], '--work-dir', str(work_dir), *command[options:]]
    say(step, f'the toy ODISE, {what}; in {shown_folder(out)}:\n  {shown_command(command, out)}')
    seconds = run_tool(command, out / work_dir, out)
    return dict(read_scores(out / work_dir, 'panoptic/PQ'), seconds=seconds)


def shown_folder(out: Path) -> Path:
    return out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out


def continuing(weights: str, iters: int | None) -> list[str]:
    """Options of a training that begins from other weights, or is of another length, than its config says."""
    options = [f'load_from={weights}'] if weights != WEIGHTS else []
    if iters is not None:
        options += [
            f'{key}={iters}'
            for key in ('train_cfg.max_iters', 'train_cfg.val_interval', 'param_scheduler.1.end')
        ]
        options.append(f'param_scheduler.1.begin={min(20, iters // 2)}')
    return ['--cfg-options', *options] if options else []


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """PQ of the runs on the scenes to score, and what chance would give."""
    rows = [
        [
            name,
            *(f'{run[f"panoptic/{key}"]:.1f}' for key in SCORES.values()),
            f'{run["seconds"]:.0f}',
        ]
        for name, run in runs.items()
    ]
    text = format_table([f'PQ on {SCENES["val_heldout"]} scenes', *SCORES, 'seconds'], rows)
    return f'{text}\n\n{CHANCE}'


# ---- asking ----------------------------------------------------------------------------------------------------------


def ask(
    step: int, weights: str, scenes: Sequence[Scene], pictures: Sequence[Path], out: Path
) -> list[tuple[Path, str]]:
    """Ask about new scenes by all of ToyScenes' names and by :data:`WORDS`; files with what they show."""
    from mmdiffrep.apis import OpenVocabInferencer

    words = ' '.join(WORDS.split())
    command = [ROOT / 'tools/segment.py', out / 'new_scenes', '--vocab', words, '--out', 'segments']
    if weights != WEIGHTS:
        command += ['--config', CONFIG, '--weights', weights]
    say(
        step,
        f'new scenes, asked for in words; in {shown_folder(out)}:\n  {shown_command(command, out)}',
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        inferencer = OpenVocabInferencer(CONFIG, weights, 'cpu')
        named = inferencer(list(pictures), 'toyscenes', progress=False)
        asked = inferencer(list(pictures), words, progress=False, out_dir=out / 'segments')
    for result in asked:
        found = ', '.join(f'{s["name"]} {s["score"]:.2f}' for s in result.segments if s['isthing'])
        print(f'  {result.path.name}: {found or "no things"}', flush=True)
    sheet = write_picture(out / 'overlays.png', draw(scenes, named, asked))
    return [
        (
            sheet,
            'image | truth | asked for all ToyScenes names | asked in the words of this script',
        ),
        (out / 'segments', 'the last column in full size, with JSON and COCO-panoptic files'),
        *draw_features(read_config(), [scene.image for scene in scenes[:4]], out, blocks=False),
    ]


def draw(scenes: Sequence[Scene], named: Sequence[Any], asked: Sequence[Any]) -> np.ndarray:
    """The contact sheet, a class in one colour throughout."""
    colour = class_colours()
    others = sorted({s['name'] for result in asked for s in result.segments} - set(colour))
    colour |= dict(zip(others, segment_colours(len(others))))

    def cell(
        image: np.ndarray, ids: np.ndarray, segments: Sequence[Mapping[str, Any]]
    ) -> np.ndarray:
        marked = [
            dict(s, name=s['name'] + ('*' if s['name'] in HELD_OUT else '')) for s in segments
        ]
        own = [colour[s['name']] for s in segments]
        return draw_panoptic(image, ids, marked, 0.55, SIDE, key=False, colours=own)

    rows = []
    for scene, first, second in zip(scenes, named, asked):
        ids, segments = truth(scene)
        plain = draw_panoptic(scene.image, np.zeros_like(ids), [], side=SIDE, key=False)
        found = [cell(scene.image, result.ids, result.segments) for result in (first, second)]
        rows.append([plain, cell(scene.image, ids, segments), *found])
    heads = ['image', 'truth', 'asked for all ToyScenes names', 'asked in other words']
    foot = text_picture(
        '* a colour and a shape that training never showed together. A class has one colour throughout: a thing the hue of its name.'
    )
    return contact_sheet(rows, heads, title='The toy ODISE on new scenes', footer=foot)


def class_colours() -> dict[str, Sequence[int]]:
    """RGB: things have the hue that their name says, and a shade for each shape; stuff has its own colour."""
    shades = [(s, v) for s in (1.0, 0.6) for v in (1.0, 0.75, 0.5)]
    found: dict[str, Sequence[int]] = dict(zip(STUFF, SEMANTIC_PALETTE))
    for name in THINGS:
        colour, shape = name.split()
        saturation, value = shades[SHAPES.index(shape)]
        rgb = colorsys.hsv_to_rgb(COLOURS[colour][0] / 360, saturation, value)
        found[name] = [round(255 * c) for c in rgb]
    return found


def truth(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A scene's segments as ``draw_panoptic`` takes them."""
    ids, segments = panoptic(scene)
    name = {category['id']: category['name'] for category in panoptic_categories()}
    return ids, [dict(id=s['id'], name=name[s['category_id']]) for s in segments]


if __name__ == '__main__':
    raise SystemExit(main())

#!/usr/bin/env python
"""Evaluate a trained model on its config's test set, in any default scope (mmseg, mmdet, mmengine)."""

from __future__ import annotations

import argparse
import os

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep.utils import cli

# What draws predictions in a scope: its hook and its visualizer
DRAWING = {
    'mmseg': ('mmseg.SegVisualizationHook', 'mmseg.SegLocalVisualizer'),
    'mmdet': ('mmdet.DetVisualizationHook', 'mmdet.DetLocalVisualizer'),
}

# and of models that belong to no toolkit
OWN = dict(PointMatcher='mmdiffrep.DrawPairsHook', LabelPropagator='mmdiffrep.SaveMasksHook')


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='checkpoint file, .safetensors, folder or short name; without it the model is evaluated as built',
    )
    parser.add_argument('--out', metavar='FILE.pkl', help='write every prediction to this file')
    parser.add_argument('--show-dir', help='draw the predictions into this folder')
    cli.add_arguments(parser)
    return parser


def prepare(args: argparse.Namespace):
    """The config to evaluate. Raises: ValueError, FileNotFoundError with the cure."""
    cfg = cli.read_config(args)
    if 'test_dataloader' not in cfg:
        raise ValueError(f'{args.config} has no test_dataloader: there is nothing to evaluate')
    cfg.resume = False
    cfg.load_from = None
    if args.checkpoint is not None:
        cfg.load_from = cli.existing_checkpoint(args.checkpoint)
    if args.out is not None:
        write_predictions(cfg, args.out)
    if args.show_dir is not None:
        draw_predictions(cfg, os.path.abspath(args.show_dir))
    return cfg


def write_predictions(cfg, path: str) -> None:
    """Add mmengine's DumpResults to the metrics."""
    if not path.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out {path!r} must end in .pkl: predictions are written as a pickle')
    metrics = cfg.test_evaluator
    dump = dict(type='mmengine.DumpResults', out_file_path=path)
    cfg.test_evaluator = [*(metrics if isinstance(metrics, list) else [metrics]), dump]


def draw_predictions(cfg, folder: str) -> None:
    """Switch on the toolkit's drawing of every prediction."""
    own = OWN.get(cli.type_name(cfg.model))
    if own is not None:
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type=own, folder=folder)]
        return
    scope = cfg.get('default_scope', 'mmengine')
    hooks = cfg.get('default_hooks', {})
    if scope not in DRAWING and 'visualization' not in hooks:
        raise ValueError(
            f'--show-dir knows how to draw for default_scope {sorted(DRAWING)}, not {scope!r}. '
            'Give the config a default_hooks.visualization and a visualizer'
        )
    hook_type, visualizer_type = DRAWING.get(scope, (None, None))
    hook = {'type': hook_type, **hooks.get('visualization', {}), 'draw': True, 'interval': 1}
    if cli.type_name(hook) == 'DetVisualizationHook':
        hook['test_out_dir'] = folder
    cfg.default_hooks = dict(hooks, visualization=hook)
    visualizer = dict(
        type=visualizer_type, name='visualizer', vis_backends=[dict(type='LocalVisBackend')]
    )
    cfg.visualizer = {**visualizer, **cfg.get('visualizer', {}), 'save_dir': folder}


def main(argv: list[str] | None = None) -> None:
    cfg = cli.prepared(make_parser(), prepare, argv)
    cli.build_runner(cfg).test()


if __name__ == '__main__':
    main()

"""ConfusionMatrixHook: what is taken for what, as a picture and a table, after each evaluation."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmdiffrep.registry import HOOKS
from mmdiffrep.utils.files import write
from mmdiffrep.visualization import write_picture
from mmdiffrep.visualization.confusion import confusion_picture


@HOOKS.register_module()
class ConfusionMatrixHook(Hook):
    """Writes ``confusion.png`` and ``confusion.csv`` (rows: truth, columns: prediction, counts) into the run's log folder.

    It takes the matrix of the evaluator's first ``mmdiffrep.ClassAccuracy``; each evaluation replaces the last one's files.
    """

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.draw(runner, runner.val_evaluator, metrics or {})

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        self.draw(runner, runner.test_evaluator, metrics or {})

    @master_only
    def draw(self, runner: Any, evaluator: Any, metrics: dict[str, float]) -> None:
        from mmdiffrep.evaluation import ClassAccuracy

        metric = next((m for m in evaluator.metrics if isinstance(m, ClassAccuracy)), None)
        if metric is None or metric.confusion is None:
            return
        classes = list(metric.dataset_meta['classes'])
        counts = metric.confusion.numpy()
        if len(classes) != len(counts):  # the head has other classes than the data set
            classes = [str(i) for i in range(len(counts))]
        folder = Path(runner.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        top1 = metrics.get('accuracy/top1')
        title = '' if top1 is None else f'top-1 {top1:.2f} % of {counts.sum()} images'
        write_picture(folder / 'confusion.png', confusion_picture(counts, classes, title))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(['true / predicted', *classes])
        writer.writerows([name, *row] for name, row in zip(classes, counts.tolist()))
        write(folder / 'confusion.csv', text.getvalue())
        runner.logger.info(f'Confusion matrix: {folder}/confusion.png, .csv')

"""Starts trainings quickly: everything is imported once, then each training is a fork of this process.

Each JSON line on its standard input is a list of trainings to run at once, ``dict(argv=[…], env={…}, log=…)``; ``script=…``, a
file or a module, runs something else than tools/train.py. When all have ended it answers with the list of their exit codes, or
minus the signal that ended one.
"""

import gc
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS, MODELS
from torch._subclasses.fake_tensor import FakeTensorMode

import mmdiffrep
from mmdiffrep.models.pretrainers import DenoisingPretrainer

TRAIN = Path(__file__).parents[1] / 'tools' / 'train.py'


@HOOKS.register_module()
class KillHook(Hook):
    """Ends the process by SIGKILL in the middle of iteration ``$KILL_AT`` (counted from 1)."""

    priority = 'HIGHEST'

    def after_train_iter(self, runner, *_, **__):
        if str(runner.iter + 1) == os.environ.get('KILL_AT'):
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class LossFile(Hook):
    """Writes the loss of every iteration of every process."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        path = Path(runner.work_dir, f'losses_{os.environ.get("RANK", 0)}.txt')
        with path.open('a') as file:
            file.write(f'{float(outputs["loss"])!r}\n')


@MODELS.register_module()
class HashedPretrainer(DenoisingPretrainer):
    """Its timesteps and noise come from the images alone: the same in one process and in two."""

    _draw = DenoisingPretrainer._hashed


@METRICS.register_module()
class RestlessMetric(BaseMetric):
    """Draws random numbers, as a validation may."""

    def process(self, data_batch, data_samples):
        self.results.append(float(torch.rand(())))

    def compute_metrics(self, results):
        return dict(number=sum(results))


def train(request):
    # a pool of threads does not survive a fork, and two threads that ask for a new one at once may get none
    torch.set_num_threads(1)
    log = os.open(request['log'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request['env'])
    script = request.get('script', str(TRAIN))
    sys.argv = [script, *request['argv']]
    try:
        run = runpy.run_path if script.endswith('.py') else runpy.run_module
        run(script, run_name='__main__')
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    import diffusers
    import mmseg.apis
    import mmseg.engine
    from mmengine.config import config
    from mmengine.runner import runner

    mmdiffrep.registry.MODELS.import_from_location()
    for module in (diffusers.UNet2DModel, diffusers.DDPMPipeline, mmseg.apis):
        assert module  # diffusers imports a class when it is asked for
    with FakeTensorMode():  # torch imports much for its first fake tensor
        torch.nn.Conv2d(1, 1, 1)(torch.zeros(1, 1, 2, 2))
    runner.collect_env = dict  # it starts compilers to ask for their versions
    config.FormatCode = lambda text, **_: (text, True)  # mmengine beautifies the config five times a run
    gc.freeze()  # mmengine collects garbage for each data set: what is here already need not be looked through
    for line in sys.stdin:
        children = {}
        requests = json.loads(line)
        for index, request in enumerate(requests):
            child = os.fork()
            if child == 0:
                train(request)
            children[child] = index
        statuses = [None] * len(requests)
        while children:
            child, status = os.wait()
            statuses[children.pop(child)] = os.waitstatus_to_exitcode(status)
        print(json.dumps(statuses), flush=True)


if __name__ == '__main__':
    main()

"""One implementation of one scenario in a process of its own: python -m mmdiffrep.utils.bench.measure SETTINGS.json OUT.pt

It is built once; then each line on the standard input is a round, answered by a line of JSON and the answer in OUT.pt.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdiffrep.utils.comparison.flops import count_flops
from mmdiffrep.utils.comparison.memory import forget_peak, peak_of_process

from .scenarios import SCENARIOS


class Measured:
    """A scenario's case, built once, and measured as often as is asked for."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.s = SimpleNamespace(**settings)
        torch.set_num_threads(self.s.threads)
        self.scenario = SCENARIOS[self.s.scenario]
        self.on_cpu = torch.device(self.s.device).type == 'cpu'
        self.case = self.scenario.make(self.s.implementation, self.s)
        with self._mode():
            for _ in range(self.s.warm_up):
                self.case.call()

    def _mode(self) -> AbstractContextManager:
        return torch.enable_grad() if self.scenario.learns else torch.inference_mode()

    def __call__(self, count: bool = False) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Seconds a call (of processor time on a CPU), peak memory in bytes with what the process has and beside it, FLOPs; the answer."""
        s, on_cpu = self.s, self.on_cpu
        clock = time.process_time if on_cpu and s.scenario != 'startup' else time.perf_counter
        with self._mode():
            forget_peak()
            if not on_cpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            before = peak_of_process() if on_cpu else torch.cuda.memory_allocated()
            seconds, answer = [], {}
            for _ in range(s.calls):
                begin = clock()
                answer = self.case.call()
                if not on_cpu:
                    torch.cuda.synchronize()
                seconds.append(clock() - begin)
            peak = peak_of_process() if on_cpu else torch.cuda.max_memory_allocated()
            if s.scenario == 'startup':
                seconds = [float(answer['seconds'][0])]
            answer = {name: value.detach().float().cpu().clone() for name, value in answer.items()}
            flops = flops_of(self.case.call) if count and self.case.counts_flops else None
        return dict(seconds=statistics.median(seconds), images=self.case.images, peak=peak, beside=peak - before, flops=flops), answer


def flops_of(call: Callable[[], Any]) -> int:
    """FLOPs of a call that is made with shapes alone, where it can be, so that counting takes no time."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return count_flops(call)
    except Exception:  # what looks at values: whatever it raises
        return count_flops(call)


def main() -> None:
    measured = Measured(json.loads(Path(sys.argv[1]).read_text()))
    for line in sys.stdin:
        found, answer = measured(count='count' in line)
        torch.save(answer, sys.argv[2])
        print(json.dumps(found), flush=True)


if __name__ == '__main__':
    main()

"""One implementation of one scenario, measured in this process: python -m mmdiffrep.utils.bench.measure SETTINGS.json OUT.pt"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdiffrep.utils.comparison.flops import count_flops
from mmdiffrep.utils.comparison.memory import forget_peak, peak_of_process

from .scenarios import SCENARIOS


def measure(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Seconds a call (of processor time on a CPU), peak memory in bytes with what the built model has and beside it, FLOPs; the answer."""
    s = SimpleNamespace(**settings)
    torch.set_num_threads(s.threads)
    on_cpu = torch.device(s.device).type == 'cpu'
    clock = time.process_time if on_cpu and s.scenario != 'startup' else time.perf_counter
    case = SCENARIOS[s.scenario].make(s.implementation, s)
    inference = torch.enable_grad() if SCENARIOS[s.scenario].learns else torch.inference_mode()
    with inference:
        for _ in range(s.warm_up):
            case.call()
        forget_peak()
        if not on_cpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before = peak_of_process() if on_cpu else torch.cuda.memory_allocated()
        seconds, answer = [], {}
        for _ in range(s.calls):
            begin = clock()
            answer = case.call()
            if not on_cpu:
                torch.cuda.synchronize()
            seconds.append(clock() - begin)
        peak = peak_of_process() if on_cpu else torch.cuda.max_memory_allocated()
        flops = flops_of(case.call) if case.counts_flops and s.count else None
    if s.scenario == 'startup':
        seconds = [float(answer['seconds'][0])]
    found = dict(seconds=statistics.median(seconds), images=case.images, peak=peak, beside=peak - before, flops=flops)
    return found, {name: value.detach().float().cpu().clone() for name, value in answer.items()}


def flops_of(call: Callable[[], Any]) -> int:
    """FLOPs of a call that is made with shapes alone, where it can be, so that counting takes no time."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return count_flops(call)
    except Exception:  # what looks at values: whatever it raises
        return count_flops(call)


def main() -> None:
    found, answer = measure(json.loads(Path(sys.argv[1]).read_text()))
    torch.save(answer, sys.argv[2])
    print(json.dumps(found))


if __name__ == '__main__':
    main()

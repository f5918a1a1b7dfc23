"One clock for all benchmarks. On a CPU: one thread and its processor time, so that other work on the machine counts little. On a GPU: the wall clock, after it has finished."
import time

import torch

from miniai.core import def_device

clock = time.process_time if def_device == 'cpu' else time.perf_counter
if def_device == 'cpu': torch.set_num_threads(1)

def timed(f):
    "Seconds that `f()` takes"
    wait = torch.cuda.synchronize if def_device == 'cuda' else lambda: None
    wait(); t = clock()
    f(); wait()
    return clock()-t

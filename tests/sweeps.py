"""Runs of a sweep side by side, each in a process of one thread, and kept as they are done."""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import psutil
import torch

from course.lab.runtime import setup


def _one_thread():
    torch.set_num_threads(1)
    setup()


def side_by_side(run, tasks):
    """(task, run(task)) for each of the tasks as it is done; `run` is a function of a module, a task can be pickled.

    SWEEP_PROCESSES says how many run at once; without it, one a physical core.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    processes = int(os.environ.get("SWEEP_PROCESSES", 0)) or psutil.cpu_count(logical=False)
    with ProcessPoolExecutor(processes, get_context("spawn"), _one_thread) as pool:
        waiting = {pool.submit(run, task): task for task in tasks}
        for done in as_completed(waiting):
            yield waiting[done], done.result()

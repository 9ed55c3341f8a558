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


def keep_runs(plans, read, write, run):
    """Make the runs that are not recorded yet, and record each as it is done.

    plans: name -> settings of each of its runs, as dicts. read(name): the runs recorded under a name, dicts of settings
    and "result". write(name, runs): record them. run((name, number)): a run's result.
    """
    kept, missing = {}, []
    for name, plan in plans.items():
        done = {str({key: run[key] for key in run if key != "result"}): run for run in read(name)}
        kept[name] = {i: done[str(settings)] for i, settings in enumerate(plan) if str(settings) in done}
        missing += [(name, i) for i in range(len(plan)) if i not in kept[name]]
    for (name, i), result in side_by_side(run, missing):
        kept[name][i] = plans[name][i] | {"result": result}
        print(name, kept[name][i], flush=True)
        write(name, [kept[name][number] for number in sorted(kept[name])])

"""Runs of a sweep side by side, each in a process of one thread, and kept as they are done."""

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import psutil
import torch

from course.lab.data import DataError
from course.lab.metering import load_measurement, save_measurement
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


def keep_runs(family, plans, run):
    """Make the runs that are not recorded yet, and record each as it is done, as the measurement FAMILY-NAME.

    plans: name -> settings of each of its runs, as dicts that JSON gives back unchanged. run((name, number)): a result.
    """
    kept, missing = {}, []
    for name, plan in plans.items():
        done = {str({key: each[key] for key in each if key != "result"}): each for each in _recorded(family, name)}
        kept[name] = {i: done[str(settings)] for i, settings in enumerate(plan) if str(settings) in done}
        missing += [(name, i) for i in range(len(plan)) if i not in kept[name]]
    for (name, i), result in side_by_side(run, missing):
        kept[name][i] = plans[name][i] | {"result": result}
        print(name, kept[name][i], flush=True)
        runs = [kept[name][number] for number in sorted(kept[name])]
        save_measurement(f"{family}-{name}", {"runs": runs}, f"python tests/{family}_sweeps.py {name}")


def best_recorded(family, name, **settings):
    """The run of the lowest loss, of those that are recorded with these settings."""
    runs = (run for run in _recorded(family, name) if all(run[key] == value for key, value in settings.items()))
    return min(runs, key=lambda run: run["result"]["loss"])


def _recorded(family, name):
    try:
        return load_measurement(f"{family}-{name}")["results"]["runs"]
    except DataError:
        return []

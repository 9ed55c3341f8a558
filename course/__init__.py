"""Finetuning, measured: the helper package of the course.

Nothing is loaded until it is used: `import course` takes milliseconds and loads no torch.
"""

import pkgutil
from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "show": "course.classroom.notebook",
    "reveal": "course.classroom.notebook",
    "check": "course.classroom.notebook",
    "load_model": "course.lab.models",
    "finetune": "course.lab.training",
    "evaluate": "course.lab.evaluation",
}
_MODULES = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name):
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"course.{name}")
    else:
        raise AttributeError(f"module 'course' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def load_ipython_extension(ipython):
    """What `%load_ext course`, the last line of every chapter's set-up cell, does with the kernel."""
    from course.classroom.setup_cell import prepare

    prepare()

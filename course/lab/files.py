"""Write a file or a folder whole or not at all."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def written_whole(path):
    """Yield a temporary name beside `path`; what the block writes there takes `path`'s place if it succeeds.

    However the process ends, `path` holds the old content or the new, never a part. A folder cannot be
    replaced in one step: between two renames the old one is called NAME.old for an instant.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    _remove(temporary)  # a killed run may have left one
    try:
        yield temporary
        if temporary.is_file():
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # the name must never reach the disk before the content
        if temporary.is_dir() and path.exists():
            _remove(old)
            path.rename(old)
        os.replace(temporary, path)
        _remove(old)
    finally:
        _remove(temporary)

"""The file that a killed run continues from: tensors in safetensors, the rest as JSON in its header."""

import errno
import hashlib
import json
import shutil
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from course.lab.files import written_whole


class Checkpoint:
    """The checkpoint of one run, FOLDER/training.safetensors.

    Args:
        identity: what the run is, as a flat dict that fits JSON. A checkpoint is refused when it differs.
    """

    def __init__(self, folder, identity):
        self.path = Path(folder) / "training.safetensors"
        self.identity = json.loads(json.dumps(identity, default=float))

    def check_space(self, needed_bytes):
        """Raise OSError, before any work is done, where the first checkpoint could not be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if free < needed_bytes:
            raise OSError(
                errno.ENOSPC,
                f"A checkpoint of this run takes {needed_bytes:,} bytes and {free:,} are free; nothing was"
                " trained. Free some space or choose another checkpoint_dir",
                str(self.path.parent),
            )

    def save(self, tensors, state):
        """Write tensors (by name) and state (fits JSON); where that fails, warn and keep the last one."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        try:
            with written_whole(self.path) as temporary:
                header = {"identity": json.dumps(self.identity), "state": json.dumps(state)}
                save_file(tensors, temporary, header)
        except (OSError, SafetensorError) as error:
            needed = sum(tensor.nbytes for tensor in tensors.values())
            free = shutil.disk_usage(self.path.parent).free
            kept = "The one before it is still whole." if self.path.exists() else "There is none from before."
            warnings.warn(
                f"No checkpoint was written to {self.path}: {error}. It takes {needed:,} bytes and {free:,}"
                f" are free. {kept} The model keeps what it has learned and training goes on.",
                RuntimeWarning,
                stacklevel=2,
            )

    def load(self):
        """(tensors, state) of the last save, or None where there is none.

        Raises:
            ValueError: the file is damaged or belongs to a run with another identity; says what differs.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                header = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            tensors, identity = load_file(self.path), header["identity"]
        except (SafetensorError, KeyError, ValueError) as error:
            problem = f"{self.path} is no checkpoint or is damaged ({error}); delete it to start anew"
            raise ValueError(problem) from None
        differing = [
            f"{key} was {identity.get(key)!r} and is {self.identity.get(key)!r}"
            for key in sorted(identity | self.identity)
            if identity.get(key) != self.identity.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.path} belongs to another run: {'; '.join(differing)}."
                " Choose another checkpoint_dir, or delete the file to start anew"
            )
        return tensors, header["state"]


def digest(*parts):
    """Twelve hexadecimal digits that change when any part (fits JSON) does."""
    return hashlib.sha256(json.dumps(parts, default=float).encode()).hexdigest()[:12]

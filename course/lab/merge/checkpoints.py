"""Read tensors of a model folder one by one, and write a new one shard by shard."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file

from course.lab.data import DATA, DataError
from course.lab.models import BUNDLED
from course.lab.runtime import online

SHARD = 2 * 10**9  # bytes


class Checkpoint:
    """The safetensors of a bundled model, a folder or a Hub id; nothing is read before it is asked for.

    shapes: name -> shape, a list.
    """

    def __init__(self, name):
        self.folder = _folder(name)
        files = sorted(self.folder.glob("*.safetensors"))
        if not files or not (self.folder / "config.json").exists():
            raise DataError(f"model {name!r}: a folder with config.json and safetensors files is accepted")
        self.files = {key: file for file in (safe_open(path, "pt") for path in files) for key in file.keys()}  # noqa: SIM118
        self.shapes = {key: file.get_slice(key).get_shape() for key, file in self.files.items()}

    def tensor(self, name):
        return self.files[name].get_tensor(name)


def _folder(name):
    if name in BUNDLED:
        return DATA / "models" / name
    if Path(name).is_dir():
        return Path(name)
    if not online():
        raise DataError(f"model {name!r} is neither bundled nor a folder, and the Hub cannot be reached")
    return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.model", "merges.txt"]))


class ShardWriter:
    """Collect tensors and write a file whenever there are enough; `finish` writes the rest and the index."""

    def __init__(self, folder):
        self.folder, self.waiting, self.size, self.places = folder, {}, 0, {}

    def add(self, name, tensor):
        if self.waiting and self.size + tensor.nbytes > SHARD:
            self.flush()
        self.waiting[name], self.size = tensor.contiguous(), self.size + tensor.nbytes

    def flush(self):
        file = f"model-{len(set(self.places.values())) + 1:05d}.safetensors"
        save_file(self.waiting, self.folder / file, metadata={"format": "pt"})
        self.places |= dict.fromkeys(self.waiting, file)
        self.dtype, self.waiting, self.size = next(iter(self.waiting.values())).dtype, {}, 0

    def finish(self):
        """Returns the dtype of the tensors."""
        self.flush()
        if len(set(self.places.values())) == 1:
            (self.folder / "model-00001.safetensors").rename(self.folder / "model.safetensors")
        else:
            total = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
            index = {"metadata": {"total_size": total}, "weight_map": self.places}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        return self.dtype

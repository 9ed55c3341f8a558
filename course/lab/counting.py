"""The bytes of live tensors, and their peak.

CUDA's allocator knows its peak. A CPU has no such counter, so there every storage is counted when an
operation creates it and again when it is freed: the exact bytes of tensors, without what a kernel takes and
gives back inside one operation.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageCounter(TorchDispatchMode):
    """Count the bytes of live tensor storages while active. Views share a storage, which counts once."""

    def __init__(self, held=()):
        super().__init__()
        self.sizes, self.finalizers = {}, []  # address of a live storage -> bytes
        self.live_bytes = self.peak_bytes = 0
        for tensor in held:
            self.add(tensor)

    def add(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes and storage.device.type != "meta":
            self.sizes[storage._cdata] = storage.nbytes()
            self.live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            self.finalizers.append(weakref.finalize(storage, self.forget, storage._cdata))

    def forget(self, key):
        self.live_bytes -= self.sizes.pop(key)

    def __exit__(self, *error):
        super().__exit__(*error)
        for finalizer in self.finalizers:
            finalizer.detach()  # or storages that live on would keep this counter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


class CudaPeak:
    """The same figure from CUDA's allocator: bytes allocated before, beyond those of `held`, do not count."""

    def __init__(self, held=()):
        storages = {storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in held)}
        self.held_bytes = sum(storages.values())

    def __enter__(self):
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def __exit__(self, *error):
        self.peak_bytes = torch.cuda.max_memory_allocated() - self.before + self.held_bytes


def tensors_of(thing):
    """All tensors that a tensor, module, optimizer or a list or tuple of these holds, gradients included."""
    if isinstance(thing, torch.Tensor):
        return [thing] if thing.grad is None else [thing, thing.grad]
    if isinstance(thing, torch.nn.Module):
        return [tensor for part in (*thing.parameters(), *thing.buffers()) for tensor in tensors_of(part)]
    if isinstance(thing, torch.optim.Optimizer):
        return [leaf for leaf in tree_leaves(list(thing.state.values())) if isinstance(leaf, torch.Tensor)]
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in tensors_of(part)]
    kind = type(thing).__name__
    raise ValueError(f"include: {kind} cannot be counted; it takes tensors, modules, optimizers, lists of these")

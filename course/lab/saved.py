"""The tensors that autograd keeps from the forward pass for the backward pass."""

import torch


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Collect what autograd saves inside a `with` block; .nbytes is the bytes of all of it.

    Views share a storage, which counts once. Parameters of `model` are left out: they are there anyway. What was
    saved stays alive as long as this object does.
    """

    def __init__(self, model):
        super().__init__(self.pack, lambda tensor: tensor)
        self.parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self.storages = {}  # address -> storage

    def __enter__(self):
        super().__enter__()
        return self

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters:
            self.storages[storage._cdata] = storage
        return tensor.detach()  # not the tensor itself: an operation that keeps its own result would never be freed

    @property
    def nbytes(self):
        return sum(storage.nbytes() for storage in self.storages.values())

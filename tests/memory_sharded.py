"""Peak bytes of one of several processes, counted: torch's DDP, ZeroRedundancyOptimizer and FSDP2 over gloo, on CPU."""

import gc
import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory_counts import small
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param, _fsdp_param_group
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from course.lab.counting import StorageCounter, tensors_of
from course.memory import training_memory

WIDE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_key_value_heads": 8, "head_dim": 32}


class LocalCounter(StorageCounter):
    """Of a tensor that is shared out among devices, only this device's part counts."""

    def add(self, tensor):
        super().add(tensor._local_tensor if isinstance(tensor, DTensor) else tensor)


def wrap(model, sharding):
    """The model as it trains on several devices, and its optimizer."""
    if sharding in {"zero2", "zero3"}:
        for layer in model.model.layers:
            fully_shard(layer, reshard_after_forward=sharding == "zero3")
        fully_shard(model)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    model = DistributedDataParallel(model)
    if sharding == "ddp":
        return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-4, fused=True)


def watch_resizing(counter):
    """FSDP2 gives gathered parameters back by shrinking their storage to nothing, which no operation shows."""

    def watched(resize):
        def resized(tensor):
            resize(tensor)
            storage = tensor.untyped_storage()
            counter.live_bytes += storage.nbytes() - counter.sizes.get(storage._cdata, storage.nbytes())
            if storage._cdata in counter.sizes:
                counter.sizes[storage._cdata] = storage.nbytes()
            counter.peak_bytes = max(counter.peak_bytes, counter.live_bytes)

        return resized

    _fsdp_param.free_storage = watched(_fsdp_param.free_storage)
    _fsdp_param.alloc_storage = _fsdp_param_group.alloc_storage = watched(_fsdp_param.alloc_storage)


def count(rank, devices, file, out, sharding, batch, seq):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=devices)
    model, _ = small("llama", **WIDE)
    ids = torch.randint(3, 1000, (batch, seq))
    with LocalCounter(tensors_of(model)) as counter:
        watch_resizing(counter)
        model, optimizer = wrap(model, sharding)
        for last in (False, True):
            if last:
                gc.collect()
                counter.peak_bytes = counter.live_bytes
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    out[rank] = counter.peak_bytes
    dist.destroy_process_group()


def sharded_row(sharding, devices=2, batch=2, seq=192):
    """(predicted, counted of the device that needs most)."""
    _, config = small("llama", **WIDE)
    predicted = training_memory(config, precision="fp32", batch=batch, seq=seq, devices=devices, sharding=sharding)
    with tempfile.TemporaryDirectory() as folder, mp.Manager() as manager:
        out = manager.dict()
        mp.spawn(count, (devices, f"{folder}/meet", out, sharding, batch, seq), nprocs=devices)
        return predicted, max(out.values())

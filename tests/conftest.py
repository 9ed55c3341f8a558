"""Tests never use the network to reach a model, and run one thread a process unless told otherwise."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

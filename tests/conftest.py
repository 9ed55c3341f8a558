"""Tests, and the notebooks that run with them, reach no network, one thread a process, and nobody's own record."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"  # stored outputs hold no progress bars
os.environ["COURSE_PROGRESS"] = os.path.join(tempfile.mkdtemp(prefix="course-"), "progress.json")
os.environ.setdefault("OMP_NUM_THREADS", "1")

"""JupyterLab, started for real on a copy of the notebooks, and a Chromium that looks at it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from lab_page import LabPage
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
START_SECONDS = 90
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "config/labconfig/page_config.json": {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    # all cells stay in the page, so that a test can look at each of them
    "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
}


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with a copy of notebooks/, outputs cleared: what is seen later was computed in the test."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for path in (folder / "notebooks").rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, path)
    for name, content in SETTINGS.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def lab(workplace):
    """The running server's address and token, as JupyterLab wrote them down; any free port, loopback only."""
    runtime = workplace / "runtime"
    env = os.environ | {
        "JUPYTER_CONFIG_DIR": str(workplace / "config"),
        "JUPYTER_DATA_DIR": str(workplace / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTERLAB_SETTINGS_DIR": str(workplace / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(workplace / "workspaces"),
        "IPYTHONDIR": str(workplace / "ipython"),
        "COURSE_PROGRESS": str(workplace / "progress.json"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    options = [
        "--no-browser",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        "--ServerApp.allow_root=True",
    ]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *options,
        f"--ServerApp.root_dir={workplace / 'notebooks'}",
    ]
    with (
        (workplace / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as server,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (started := list(runtime.glob("jpserver-*.json"))):
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"JupyterLab did not start:\n{(workplace / 'log').read_text()}")
                time.sleep(0.2)
            yield json.loads(started[0].read_text())
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Debian's Chromium with an empty profile."""
    chromium = shutil.which("chromium")
    assert chromium, "the browser tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=chromium,
            headless=True,
            args=CHROMIUM,
            viewport={"width": 1280, "height": 900},
        )
        yield context
        context.close()


@pytest.fixture
def lab_page(lab, browser):
    page = browser.new_page()
    yield LabPage(page, lab)
    page.close()

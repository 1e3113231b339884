"""The explorer in JupyterLab in a real browser: it runs, and a slider moved by key changes it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from tests.browser import CHROMIUM, FLAGS, needs_browser
from tests.tree import ROOT

pytestmark = needs_browser


def shorter(folder: Path) -> None:
    """The committed notebook on a quarter of the text, so that CI need not wait."""
    text = (ROOT / "notebooks" / "explorer.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    for was, now in (
        ("N = 8192", "N = 2304"),
        ("assert look(head, selection).cell == 16", ""),
        ("query=6600, key=680", "query=2200, key=300"),
    ):
        cells = [cell for cell in notebook.cells if was in cell.source]
        assert len(cells) == 1, f"{was!r} must stand in one cell of the notebook"
        cells[0].source = cells[0].source.replace(was, now)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "explorer.ipynb")


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    """Until the server answers."""
    for _ in range(900):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not answer: {log.read_text()}")


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a free port, without its news; its address."""
    shorter(tmp_path)
    settings = tmp_path / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "config" / "lab" / "user-settings"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "OMP_NUM_THREADS": "2",
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
        f"--ServerApp.root_dir={tmp_path}",
    ]  # fmt: skip
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, server, tmp_path / "lab.log")
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def run_all(page) -> None:
    """Run every cell, once the kernel listens: before, JupyterLab drops the command silently."""
    from playwright.sync_api import TimeoutError

    page.get_by_text("| Idle").first.wait_for()  # in the status bar
    begun = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]"))
    for _ in range(5):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        try:
            begun.first.wait_for(timeout=4_000)
            return
        except TimeoutError:
            page.keyboard.press("Escape")
    raise AssertionError("JupyterLab did not begin to run the notebook")


def test_a_slider_moved_by_key_changes_the_picture(lab):
    from playwright.sync_api import sync_playwright

    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(120_000)
        page.goto(f"{lab}/lab/tree/explorer.ipynb")
        run_all(page)
        picture = page.locator("img[alt^='Attention map']")
        picture.wait_for()
        handles = page.locator(".jupyter-widgets .noUi-handle")
        assert handles.count() == 8, "layer, head, θ, step, tail, window, query and key"
        says, source = picture.get_attribute("alt"), picture.get_attribute("src")
        assert "θ = 9," in says

        theta = handles.nth(2)
        theta.focus()
        page.keyboard.press("ArrowRight")
        page.locator("img[alt*='θ = 9.5,']").wait_for()
        assert picture.get_attribute("src") != source

        page.keyboard.press("Tab")  # the next control is reached without a mouse
        page.keyboard.press("Tab")
        picture.scroll_into_view_if_needed()
        page.screenshot(path=out / "explorer.png")
        box = picture.bounding_box()
        assert min(box["width"], box["height"]) > 400
        browser.close()

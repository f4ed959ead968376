"""Looks at pages: in headless Chromium with axe-core, and with html-validate. `make test` gets both by npm, where there
is one; Chromium the system has to bring.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from html import escape, unescape
from pathlib import Path
from typing import Any

from commands import ROOT

MODULES = ROOT / ".browser" / "node_modules"
AXE, VALIDATOR = MODULES / "axe-core" / "axe.min.js", MODULES / ".bin" / "html-validate"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_VALIDATOR = "" if VALIDATOR.is_file() else "`make browser` gets html-validate, by npm"
NO_BROWSER = ("" if CHROMIUM else "there is no Chromium") or (
    "" if AXE.is_file() else "`make browser` gets axe-core, by npm"
)
"""Why a page cannot be looked at; "" if it can."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=30000", "--dump-dom"),
)


def errors(page: Path, presets: str) -> str:
    """What html-validate finds wrong, a line each; "" for nothing."""
    command = [str(VALIDATOR), "--preset", presets, "--formatter", "text", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def violations(page: str, *, dark: bool, folder: Path | None = None) -> list[str]:
    """What axe-core finds wrong, with the first element.

    Args:
        folder: where the files are that the page names.
    """
    script = "axe.run().then(found => tell(found.violations.map(v => v.id + ': ' + v.nodes[0].html)))"
    axe = AXE.read_text(encoding="utf-8")
    looked_at = page.replace("</body>", f"<script>{axe}</script>{_script(script)}</body>")
    found: list[str] = _told(looked_at, dark=dark, folder=folder)
    return found


def width_of(page: str, screen: int) -> int:
    """How wide the page is on a screen of so many pixels. Chromium's own window is 500 at least."""
    frame = f'<iframe width="{screen}" height="800" style="border: 0" srcdoc="{escape(page)}"></iframe>'
    script = "onload = () => tell(document.querySelector('iframe').contentDocument.documentElement.scrollWidth)"
    found: int = _told(f"<!doctype html><body>{frame}{_script(script)}</body>", dark=False)
    return found


def _script(text: str) -> str:
    tell = "const tell = found => { document.body.innerHTML = '<pre id=found></pre>';"
    return f"<script>{tell} document.getElementById('found').textContent = JSON.stringify(found) }}; {text}</script>"


def _told(page: str, *, dark: bool, folder: Path | None = None) -> Any:
    assert CHROMIUM
    with tempfile.TemporaryDirectory() as own:
        file = Path(folder or own, "looked-at.html")
        file.write_text(page, encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={int(not dark)}"
        command = [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={own}/user", f"file://{file}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        file.unlink()
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))

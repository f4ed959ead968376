"""Looks at a page in headless Chromium. `make browser` gets axe-core by npm; Chromium the system has to bring."""

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

AXE = ROOT / ".browser" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium")
MISSING = ("there is no chromium" if CHROMIUM is None else "") or (
    "" if AXE.is_file() else "`make browser` gets axe-core"
)
"""Why a page cannot be looked at; "" if it can."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=30000", "--dump-dom"),
)


def violations(page: str, *, dark: bool) -> list[str]:
    """What axe-core finds wrong, with the first element."""
    script = "axe.run().then(found => tell(found.violations.map(v => v.id + ': ' + v.nodes[0].html)))"
    axe = AXE.read_text(encoding="utf-8")
    found: list[str] = _told(page.replace("</body>", f"<script>{axe}</script>{_script(script)}</body>"), dark=dark)
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


def _told(page: str, *, dark: bool) -> Any:
    assert CHROMIUM
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        file.write_text(page, encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={int(not dark)}"
        command = [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={folder}/user", f"file://{file}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))

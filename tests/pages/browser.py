"""Chromium for the tests of pages, with the network off."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SNAP = Path("/snap/bin/chromium").exists()  # Ubuntu's package, which does not see the tests' files in /tmp
NAMES = ["google-chrome"] if SNAP else ["chromium", "chromium-browser", "google-chrome"]
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
ADVICE = "install google-chrome, Ubuntu's chromium is a snap" if SNAP else "apt install chromium"
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason=f"no Chromium that can be used: {ADVICE}")


@contextmanager
def browser() -> Iterator[Callable]:
    """A function that opens a page from the disk; at the end no page may have complained in its console."""
    playwright, complaints = pytest.importorskip("playwright.sync_api"), []
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(path: Path, width: int = 1280, scheme: str = "light"):
            page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(path.as_uri())
            return page

        yield open_page
        chromium.close()
    assert complaints == []

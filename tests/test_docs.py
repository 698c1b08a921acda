"""The documentation keeps up with the code, and becomes a site without a warning."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from omniopd.store import errors
from omniopd.view.trackers.sinks import TrackerError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_kind_of_error_has_a_section_about_what_to_do():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.OmniopdError]
    headings = "\n".join(re.findall(r"^## .*$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE))
    for kind in [*kinds, TrackerError]:
        code = "" if kind.exit_code == 3 else f", exit {kind.exit_code}"
        assert f"({kind.__name__}{code})" in headings


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning_and_says_what_the_code_says(tmp_path):
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", DOCS / "site" / "mkdocs.yml", "--site-dir", site],
        capture_output=True, text=True, cwd=ROOT, timeout=590,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING -" not in built.stderr
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        assert ("index.html" if name == "index" else f"{name}/index.html") in pages
    assert "omniopd reset" in pages["commands/index.html"]
    assert "budget_usd" in pages["config/index.html"]
    assert "anchor_entropy" in pages["tables/index.html"]
    api = pages["api/index.html"]
    for name in (
        "omniopd.run.Run.audit",
        "omniopd.view.status.Status.rounds_planned",
        "omniopd.store.errors.BudgetReached",
    ):
        assert f'id="{name}"' in api
    for name, text in pages.items():
        assert not re.search(
            r"""<(?:script|link|img)[^>]+(?:src|href)=["']?https?://""", text.replace('<link rel="canonical"', "")
        ), f"{name} asks another host for something"

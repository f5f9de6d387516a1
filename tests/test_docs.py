"""Every page of docs/ is a program that runs, and its table lists every page."""

from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(p.name for p in DOCS.glob("*.md") if p.name != "README.md")


def blocks(page):
    """The page with all but its Python blocks blanked, so that a traceback's line is the page's."""
    inside, lines = False, []
    for line in (DOCS / page).read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence and not inside else inside and not fence
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = blocks(page)
    assert source.strip(), f"docs/{page} has no Python block"
    exec(compile(source, f"docs/{page}", "exec"), {"__name__": "__main__"})


def test_table_lists_every_page():
    table = (DOCS / "README.md").read_text()
    assert [page for page in PAGES if f"({page})" not in table] == []

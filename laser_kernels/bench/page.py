"""One self-contained HTML page of rows and pictures, which opens offline and fits a phone; and the pictures as PNG."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import matplotlib

from laser_kernels.bench.figures import Picture, pictures
from laser_kernels.bench.rows import Row, method

DPI = 150
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 1rem 3rem; max-width: 72rem; color: #111; }
main { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; }
figure svg { width: 100%; height: auto; }
h2 { font-size: 1.05rem; margin: 0 0 .3rem; }
figcaption { font-size: .85rem; color: #444; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; white-space: nowrap; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.ours { font-weight: 600; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$about</p>
<main>
$figures
</main>
<h2>Rows</h2>
<div class="wide">
<table>
<thead><tr>$heads</tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>
</body>
</html>
""")
HEADS = (
    "problem", "method", "seconds", "p10-p90", "excess", "residual", "of bound", "best peer / ours", "peak MiB", "status"
)  # fmt: skip


def _svg(picture: Picture) -> str:
    """Inline SVG that scales with its column; text stays text."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": picture.name}):
        picture.figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = html.escape(picture.title, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cells(row: Row) -> list[str]:
    m, n = row["shape"]
    details = row.get("details") if isinstance(row.get("details"), dict) else None
    source = f", {details['source']}" if details and details.get("source") else ""
    between = "" if row["p10"] is None else f"{row['p10']:.4g}-{row['p90']:.4g}"
    route = f" ({row['route']})" if row["route"] and row["route"] != method(row) else ""
    return [
        f"{row['op']} {row['batch']} x {m}x{n}, rank {row['rank']}, {row['dtype']}{source}, excess <= {row.get('tol')}",
        (row["peer"] or method(row)) + route,
        _number(row["seconds"], ".4g"),
        between,
        _number(row["excess"], ".1e"),
        _number(row["residual"], ".4g"),
        _number(row["bound_share"], ".1%"),
        _number(row["ratio_best_peer"], ".2f"),
        "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}",
        row["status"],
    ]


def _about(rows: Sequence[Row]) -> str:
    machines = {f"{row['gpu'] or row['device']}, {row['threads']} CPU threads" for row in rows}
    commits = {row["commit"] or "unknown" for row in rows}
    commands = dict.fromkeys(row["command"] for row in rows)
    return f"{'; '.join(sorted(machines))}. Commit {', '.join(sorted(commits))}. Command: {'; '.join(commands)}"


def write(file: Path, rows: Iterable[Row], title: str) -> list[Path]:
    """The page, and each picture beside it as <stem>-<name>.png; their paths."""
    rows = [row for row in rows if isinstance(row["shape"], list) and len(row["shape"]) == 2]
    written, figures = [file], []
    for picture in pictures(rows):
        written.append(file.with_name(f"{file.stem}-{picture.name}.png"))
        picture.figure.savefig(written[-1], dpi=DPI)
        figures.append(
            f"<figure>\n<h2>{html.escape(picture.title)}</h2>\n{_svg(picture)}\n"
            f"<figcaption>{html.escape(picture.caption)}</figcaption>\n</figure>"
        )
    lines = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row))
        lines.append(f"<tr{' class=ours' if row['peer'] is None else ''}>{cells}</tr>")
    text = PAGE.substitute(
        title=html.escape(title),
        about=html.escape(_about(rows)) if rows else "No rows.",
        figures="\n".join(figures),
        heads="".join(f"<th>{head}</th>" for head in HEADS),
        rows="\n".join(lines),
    )
    file.write_text(text, encoding="utf-8")
    return written

"""The page of `laser-kernels bench --html`: self-contained, and drawn by a real browser without an error."""

import html
import json
import re
import shutil
import subprocess

import pytest

pytest.importorskip("matplotlib", reason="the pictures need matplotlib: pip install 'laser-kernels[bench]'")

from laser_kernels.bench import page
from laser_kernels.bench.rows import row
from laser_kernels.bench.timing import Samples

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
)  # fmt: skip
PHONE = 390  # CSS pixels


def made(peer, n, rank, tol, seconds, excess, batch=1):
    method = peer or "laser_kernels"
    details = {"suite": "growth", "source": "llm-like", "method": method, "rank": rank, "reaches": True, "count": None}
    return row(
        Samples([seconds, 1.1 * seconds]), op="low_rank", peer=peer, route=None if peer else "randomized", shape=[n, n],
        rank=int(rank * n), batch=batch, dtype="float32", excess=excess, residual=0.5, bound_share=0.1 / (1 + seconds),
        ratio_best_peer=None if peer else 2.0, tol=tol, details=details,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    """Two methods, three sizes at one tol, and three tols at one size."""
    found = []
    for n in (64, 128, 256):
        found += [
            made(None, n, 0.1, 1e-3, 1e-9 * n**2.5, 2e-4),
            made("torch.linalg.svd", n, 0.1, 1e-3, 1e-9 * n**3, 1e-12),
        ]
    found += [made(None, 256, 0.1, tol, 1e-3 * tol**-0.3, 0.3 * tol) for tol in (0.1, 0.01)]
    return found


@pytest.fixture(scope="module")
def written(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return page.write(folder / "bench.html", rows, "A <title> & more"), folder


def test_page_needs_nothing_else_and_holds_every_row(written, rows):
    text = (written[1] / "bench.html").read_text()
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", text) == []
    assert re.findall(r"url\((?!#)", text) == []
    assert "<title>A &lt;title&gt; &amp; more</title>" in text
    body = text[text.index("<tbody>") :]
    assert body.count("<tr") == len(rows)
    assert text.count("<figure>") == text.count("<svg") >= 4


def test_every_picture_is_a_png_that_shows_something(written):
    image = pytest.importorskip("matplotlib.image")
    pictures = [path for path in written[0] if path.suffix == ".png"]
    names = {re.sub(r"^bench-|-?\d*\.png$", "", path.name) for path in pictures}
    assert names == {"trade-off", "throughput", "growth", "bound"}
    for path in pictures:
        pixels = image.imread(path)[..., :3]
        assert (pixels < 0.5).any(2).mean() > 0.002, path  # ink


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_browser_draws_the_plots_on_a_phone_without_an_error(written, tmp_path):
    """Screenshot of a phone's width: no console message, no sideways scrolling, ink where each plot should be."""
    source = (written[1] / "bench.html").read_text()
    probe = """<script>window.addEventListener("load", () => {
      const shown = [...document.querySelectorAll("figure svg")].map(svg => {
        const box = svg.getBoundingClientRect(), drawn = svg.getBBox();
        return [box.width, box.height, drawn.width, svg.querySelectorAll("path").length];
      });
      document.title = JSON.stringify({shown, wide: document.documentElement.scrollWidth, window: innerWidth});
    });</script></body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(source.replace("</body>", probe))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={PHONE},4000"]
    done = subprocess.run(
        [*command, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert not re.search(r"CONSOLE|Uncaught|net::ERR", done.stderr), done.stderr
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]))
    assert len(found["shown"]) == source.count("<svg")
    for width, height, drawn, paths in found["shown"]:
        assert 250 <= width <= found["window"] and height > 150 and drawn > 100 and paths > 10, found
    assert found["wide"] <= found["window"], "the page scrolls sideways on a phone"

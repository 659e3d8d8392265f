"""The page in a real browser, without a network: light and dark, wide, narrow and on paper; tables sort and films scrub."""

import json
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
import result_folders as make
from running import config_of

from flm.report.figures.plotting import COLOURS
from flm.report.report import report


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium or google-chrome on this machine")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = make.everything(tmp_path_factory.mktemp("results"))
    make.samples(root / "eval" / "other", "other", scale=0.9)
    out = tmp_path_factory.mktemp("report")
    report(config_of(out, "mode=report", f"report.inputs=[{root}]"))
    return out / "report.html"


def asked(chromium, page, folder, *options):
    """What the browser prints and complains of."""
    usual = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    usual += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=2000"]
    command = [chromium, *usual, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)


def opened(chromium, page, folder, width=1200, height=6500, *options):
    """Pixels, and complaints of the console."""
    shot = folder / "page.png"
    done = asked(chromium, page, folder, f"--window-size={width},{height}", f"--screenshot={shot}", *options)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return matplotlib.image.imread(shot)[..., :3], complaints


def near(pixels, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(pixels - wanted).max(-1) < 0.03).sum())


def played(chromium, page, folder, script, *options):
    """The page after a script of the test's has used it: what the script returns."""
    html = page.read_text(encoding="utf-8")
    html = re.sub(r"<meta http-equiv=.*?>", "", html)  # which forbids scripts other than the page's own
    own = f"<script>addEventListener('load', () => {{ document.title = JSON.stringify((() => {{ {script} }})()); }});</script>"
    changed = folder / "played.html"
    changed.write_text(html.replace("</body>", f"{own}</body>"), encoding="utf-8")
    done = asked(chromium, changed, folder, "--dump-dom", *options)
    assert "CONSOLE" not in done.stderr
    return json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&lt;", "<").replace("&amp;", "&"))


def test_light_without_network_or_complaint(page, chromium, tmp_path):
    pixels, complaints = opened(chromium, page, tmp_path)
    assert complaints == [] and pixels.shape == (6500, 1200, 3)
    bands = pixels[:5000].reshape(10, 500, 1200, 3)
    assert all(band.var() > 1e-4 for band in bands)  # something in every band
    for colour in (COLOURS[0], COLOURS[1], "#76b7ec"):  # a figure's runs, and a film's surest tokens
        assert near(pixels, colour) > 400
    assert near(pixels, "#ffffff") > 0.7 * pixels[..., 0].size


def test_dark_is_dark_in_figures_too(page, chromium, tmp_path):
    pixels, complaints = opened(chromium, page, tmp_path, 1200, 6500, "--blink-settings=preferredColorScheme=0")
    assert complaints == []
    assert near(pixels, "#17191c") > 0.7 * pixels[..., 0].size and near(pixels, "#ffffff") < 200
    for colour in ("#3d9fe0", "#f08040", "#2268a3"):
        assert near(pixels, colour) > 400


def test_nothing_is_wider_than_a_narrow_screen(page, chromium, tmp_path):
    """Tables and figures scroll within themselves; the page does not."""
    script = """
        const width = document.documentElement.clientWidth;
        const wide = [...document.querySelectorAll('main *, header *')].filter((one) =>
            !one.closest('.scroll, figure, svg') && one.getBoundingClientRect().right > width + 1);
        return [width, document.documentElement.scrollWidth, wide.map((one) => one.outerHTML.slice(0, 80))];
    """
    width, needed, wide = played(chromium, page, tmp_path, script, "--window-size=500,900")
    assert width == needed == 500 and wide == []


def test_a_table_sorts_both_ways_by_number_with_empty_cells_last(page, chromium, tmp_path):
    script = """
        const table = document.getElementById('table-diversity');
        const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith('entropy'));
        const values = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[at].dataset.value));
        const button = table.tHead.rows[0].cells[at].querySelector('button'), found = [];
        for (let click = 0; click < 2; click++) {
          button.click(); found.push([table.tHead.rows[0].cells[at].getAttribute('aria-sort'), values()]); }
        const runs = document.getElementById('table-frontier'), heads = [...runs.tHead.rows[0].cells];
        const ppl = heads.findIndex((cell) => cell.textContent === 'ppl');
        heads[ppl].querySelector('button').click();
        found.push([...runs.tBodies[0].rows].map((row) => row.cells[ppl].dataset.value));
        return found;
    """
    (up, rising), (down, falling), matched = played(chromium, page, tmp_path, script)
    assert (up, down) == ("ascending", "descending")
    assert rising == sorted(rising) and falling == rising[::-1] and len(set(rising)) == 7
    assert matched == ["87.65", ""]


def test_a_film_scrubs_and_plays(page, chromium, tmp_path):
    script = """
        const film = [...document.querySelectorAll('.film')].at(-1), slider = film.querySelector('input');
        const seen = () => [...film.querySelectorAll('.moment')].filter((one) => one.offsetParent).map((one) =>
            one.querySelector('.tau').textContent);
        const found = [seen()];
        for (const value of [0, 6]) { slider.value = value; slider.dispatchEvent(new Event('input')); found.push(seen()); }
        found.push(film.querySelector('output').textContent);
        slider.value = 11; slider.dispatchEvent(new Event('input')); film.querySelector('.play').click(); found.push(seen());
        found.push(film.querySelector('.play').textContent);
        return found;
    """
    last, first, middle, said, played_from, button = played(chromium, page, tmp_path, script)
    assert (last, first, middle) == (["tau 0.92"], ["tau 0.00"], ["tau 0.50"])
    assert said == "tau 0.50, 7 of 12" and played_from == ["tau 0.00"] and button == "Stop"


def test_the_theme_button_turns_the_page_round(page, chromium, tmp_path):
    script = """
        const paper = () => getComputedStyle(document.body).backgroundColor, button = document.getElementById('theme');
        const found = [paper(), button.textContent];
        button.click(); found.push(paper(), button.textContent);
        button.click(); found.push(paper());
        return found;
    """
    assert played(chromium, page, tmp_path, script) == [
        "rgb(255, 255, 255)", "Dark", "rgb(23, 25, 28)", "Light", "rgb(255, 255, 255)",
    ]  # fmt: skip


def test_paper_shows_every_moment_of_a_film(page, chromium, tmp_path):
    """In light colours, and without buttons; the same numbers as on the screen."""
    script = """
        const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]);
        const style = document.createElement('style');
        style.textContent = rules.filter((rule) => rule.media && rule.media.mediaText === 'print').flatMap((rule) =>
            [...rule.cssRules].map((inner) => inner.cssText)).join('\\n');
        document.head.append(style);
        const film = [...document.querySelectorAll('.film')].at(-1);
        const seen = [...film.querySelectorAll('.moment')].filter((one) => one.offsetParent).length;
        return [seen, getComputedStyle(document.querySelector('nav')).display];
    """
    assert played(chromium, page, tmp_path, script) == [12, "none"]


def test_the_check_would_see_a_complaint(chromium, tmp_path):
    page = tmp_path / "broken.html"
    page.write_text("<!doctype html><script>nothing.here()</script><img src='https://example.org/x.png'>")
    pixels, complaints = opened(chromium, page, tmp_path, 400, 1200)
    assert len(complaints) >= 1 and pixels[1000:].var() < 1e-6

"""The page of `flm demo --web` in a real browser: it loads, generates, scrubs and says what is wrong, without a network."""

import html
import json
import re
import shutil
import socket
import subprocess
import threading
import time

import httpx
import pytest
from serving.models import tiny

import flm
from flm.puzzles.sudoku_rules import SudokuRules
from flm.serving.engine import Engine

uvicorn = pytest.importorskip("uvicorn")

DRIVE = """
const until = async (done) => { while (!done()) await new Promise((r) => setTimeout(r, 20)); };
const $ = (id) => document.getElementById(id);
const seen = {};
const show = () => [...document.querySelectorAll(".panel")].map((p) => p.querySelector(".tokens").textContent);
await until(() => document.documentElement.dataset.ready);
seen.sliders = [...document.querySelectorAll("#sliders input")].map((s) => s.id);
$("template").value = "the [6] a [3]";
$("s-steps").value = 1; $("s-steps").dispatchEvent(new Event("input"));
$("go").click();
await until(() => $("status").textContent.startsWith("Done"));
seen.last = show();
seen.titles = [...document.querySelectorAll(".panel h2")].map((h) => h.textContent);
seen.given = [...document.querySelectorAll(".panel:first-child .given")].map((s) => s.textContent).join("");
const film = document.querySelector(".panel input");
seen.moments = Number(film.max) + 1;
film.value = 0; film.dispatchEvent(new Event("input"));
seen.first = show()[0];
$("template").value = "the cat"; $("template").setSelectionRange(4, 7); $("hole").click();
await until(() => $("template").value !== "the cat");
seen.template = $("template").value;
$("template").value = "no hole"; $("go").click();
await until(() => $("status").classList.contains("bad"));
seen.error = $("status").textContent;
seen.theme = document.documentElement.dataset.theme;
$("theme").click();
seen.other = document.documentElement.dataset.theme;
$("first").value = "2"; $("first").dispatchEvent(new Event("change"));
const cells = () => [...document.querySelectorAll("#board input")];
await until(() => cells().some((c) => c.value));
seen.clues = cells().map((c) => c.value || ".").join("");
$("empty").click();
cells()[0].focus();
for (const key of ["ArrowRight", "ArrowDown"]) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
}
seen.focus = document.activeElement.getAttribute("aria-label");
for (const [i, symbol] of [[0, "1"], [7, "4"], [10, "2"], [13, "3"], [15, "x"]]) {
  cells()[i].value = symbol; cells()[i].dispatchEvent(new Event("input"));
}
$("go").click();
await until(() => $("status").textContent.startsWith("Done"));
seen.boards = [...document.querySelectorAll(".panel .grid")].map((t) => t.textContent);
seen.bold = [...document.querySelectorAll(".panel:first-child .grid .given")].map((t) => t.textContent).join("");
seen.verdicts = [...document.querySelectorAll(".panel .verdict")].map((v) => v.textContent);
$("second").value = ""; $("second").dispatchEvent(new Event("change"));
seen.panels = document.querySelectorAll(".panel").length;
seen.wide = document.documentElement.scrollWidth <= innerWidth;
document.title = "seen " + JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def served():
    from starlette.responses import Response
    from starlette.routing import Route

    from flm.serving.web_demo import PAGE, web_demo

    engines = {"one": Engine(tiny()), "two": Engine(tiny()), "puzzle": Engine(flm.load("builtin:puzzle"))}
    page = (
        (PAGE / "index.html")
        .read_text(encoding="utf-8")
        .replace("</body>", '<script type="module" src="drive.js"></script></body>')
    )

    async def driven(request):
        return Response(page, media_type="text/html")

    async def drive(request):
        return Response(DRIVE, media_type="text/javascript")

    app = web_demo(engines)
    app.router.routes[:0] = [Route("/driven", driven), Route("/drive.js", drive)]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", engines["one"].lm, engines["puzzle"].lm
        server.should_exit = True
        thread.join()
    for engine in engines.values():
        engine.close()


@pytest.mark.parametrize("width", [1000, 500])
def test_the_page_generates_scrubs_and_says_what_is_wrong(served, width, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome on this machine")
    url, lm, solver = served
    usual = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    usual += [
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        "--virtual-time-budget=3000000",
        f"--window-size={width},900",
    ]
    command = [chromium, *usual, f"--user-data-dir={tmp_path}", "--dump-dom", f"{url}/driven"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "400 (Bad Request)" not in line]
    assert complaints == []
    found = re.search(r"<title>seen (.*?)</title>", done.stdout, re.S)
    assert found, done.stdout[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["sliders"] == ["s-steps", "s-steps of the second", "s-temperature", "s-churn"]
    template = "the [6] a [3]"
    assert seen["last"] == [lm.infill(template, steps=2, seed=0)[0], lm.infill(template, seed=0)[0]]
    assert seen["titles"] == ["one, 2 steps", f"two, {lm.steps} steps"]
    assert seen["given"] == "the  a " and seen["moments"] == 2
    assert seen["first"].startswith("the ") and len(seen["first"]) == len(seen["last"][0])
    assert seen["template"] == "the [3]" and "no hole" in seen["error"]
    assert {seen["theme"], seen["other"]} == {"light", "dark"} and seen["wide"]
    # the board: a puzzle handed out, the keyboard, what is no symbol left out, both boards filled and judged
    assert len(seen["clues"]) == 16 and set(seen["clues"]) <= set("1234.") and seen["focus"] == "row 2, column 2"
    puzzle = "1......4..2..3.."
    template = puzzle.replace(".", "[1]")
    wanted = [solver.infill(template, steps=steps, seed=0)[0] for steps in (solver.steps, 1)]
    assert seen["boards"] == wanted and seen["bold"] == "1423"
    rules = SudokuRules(4)
    said = {True: "✓ solved", False: "✗ not solved"}
    assert seen["verdicts"] == [said[rules.check(puzzle, board).solved] for board in wanted]
    assert seen["panels"] == 1


def test_wrong_questions_to_the_page_get_one_line(served):
    url, *_ = served
    for path, body, says in (
        ("count", {"model": 9, "text": "a"}, "model: 9"),
        ("count", {"text": "a"}, "model"),
        ("count", {"model": 0, "text": "a" * 100_001}, "100,000"),
        ("check", {"model": 2, "givens": "1"}, "answer"),
        ("puzzle", {"model": 2, "seed": "x"}, ""),
    ):
        answer = httpx.post(f"{url}/{path}", json=body)
        assert answer.status_code == 400 and says in answer.json()["error"]["message"], (path, answer.text)
    assert httpx.post(f"{url}/puzzle", json={"model": 0, "seed": 1}).status_code == 400

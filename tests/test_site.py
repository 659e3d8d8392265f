"""The docs: every relative link and picture is there, every page is in the site, and the site builds without network."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("flm/**/*.md")])
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def text_of(path: Path) -> str:
    """Without code, in which brackets mean other things."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^(    |\t).*$", "", text, flags=re.M))


def anchors(path: Path) -> set[str]:
    """Of its headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_resolve(page):
    for link in _LINK.findall(text_of(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        assert target.exists(), f"{page.name}: {link} is not there"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}: no such heading"


def test_every_page_is_in_the_site_and_every_picture_on_a_page():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def listed(node):
        if isinstance(node, str):
            return {node}
        return set().union(*map(listed, node.values() if isinstance(node, dict) else node))

    assert listed(navigation) == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    shown = {(page.parent / link).resolve() for page in PAGES for link in _LINK.findall(text_of(page)) if "://" not in link}
    assert {path for path in (ROOT / "docs" / "images").iterdir()} <= shown


def test_files_that_files_speak_of_are_there():
    """Paths from the top of the tree, in comments, docs and settings; a log tells of what was."""
    named = re.compile(r"(?<![\w/.{}$-])((?:flm|tests|scripts|docs|examples)/[\w/.-]+\.(?:py|md|yaml|sh|png|ipynb))\b")
    kinds, tops = (".py", ".md", ".yml", ".yaml", ".sh", ".toml"), ("flm", "scripts", "configs", "docs")
    places = [*PAGES, *ROOT.glob("*.*ml"), *(path for top in tops for path in (ROOT / top).rglob("*"))]
    places = [path for path in places if path.suffix in kinds and path.name != "LOG.md"]
    assert len(places) > 300
    absent = {(str(path.relative_to(ROOT)), name) for path in places for name in named.findall(path.read_text(encoding="utf-8"))
              if not (ROOT / name).exists()}  # fmt: skip
    assert not absent


def test_nobody_is_sent_to_an_index_for_a_package_of_this_name():
    """It is not published, and somebody else's may be: installed is what lies here, or by a name that is known."""
    places = [*PAGES, ROOT / "mkdocs.yml", *(ROOT / "flm").rglob("*.py"), *(ROOT / "scripts").iterdir()]
    sent = re.compile(r"""pip install (?:-\S+ )*['"]?flm\b""")
    assert not [str(path) for path in places if path.is_file() and sent.search(path.read_text(encoding="utf-8"))]


def test_commands_mean_the_same_in_every_shell():
    """zsh, a Mac's, reads ~algo as a home and refuses brackets that match no file, bash does neither: both want quotes."""
    quoted, expanded = re.compile(r"""'[^']*'|"[^"]*"|#.*$"""), re.compile(r"(^|\s)~|[\[\]*?{}]")
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        lines = re.findall(r"^(?:    )?((?:\w+=\S* )*(?:flm|python main\.py|pip) \S.*)$", text, re.M)
        lines += re.findall(r"`((?:flm|python main\.py) [^`|]*=[^`]*)`", text)
        shown = {line for line in lines if expanded.search(quoted.sub("", line))}
        assert not shown or page.name == "LOG.md", f"{page.name}: {shown}"


def test_the_site_builds_strictly_and_fetches_nothing(tmp_path):
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed (pip install -e '.[docs]')")
    # whatever asks for a network gets a proxy that is not there
    environment = os.environ | {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")}
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env=environment | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reference = (site / "reference" / "index.html").read_text(encoding="utf-8")
    for name in ("generate", "infill", "nll", "load"):
        assert f'id="flm.language_model.{"LanguageModel." * (name != "load")}{name}"' in reference
    loaded = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["'](https?:[^"']*)""")
    canonical = {link for page in site.rglob("*.html") for link in loaded.findall(page.read_text(encoding="utf-8"))}
    assert not canonical, canonical

"""What somebody does first: a wheel in a fresh environment, an empty folder, and nothing of this checkout in reach."""

import os
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a minute of one core in all
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling is not installed")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def flm(wheel, tmp_path_factory):
    """The command of a new environment, which sees the packages of this one and gets the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *options, str(wheel)], check=True, env=environment())
    return folder / "bin" / "flm"


@pytest.fixture
def empty(tmp_path):
    """An empty folder to be in; only outputs/ may be in it afterwards."""
    yield tmp_path
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs"}


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def run(flm: Path, folder: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [flm, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_the_wheel_holds_what_it_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ("flm/configs/config.yaml", "flm/py.typed", "flm/box/text.flmpack", "flm/box/puzzle.flmpack", "flm/box/README.md")
    assert names.issuperset({*wanted, "flm/serving/page/index.html", "flm/export/modeling_flm.py"})
    assert not [name for name in names if name.startswith(("tests/", "docs/", "examples/", "main.py"))]
    assert wheel.stat().st_size < 5_000_000


def test_the_demo_writes_within_a_minute(flm, empty):
    begun = time.monotonic()
    done = run(flm, empty, "demo", "--steps", "1", "8", input="The [6] of the [6].\n\n/quit\n")
    assert time.monotonic() - begun < 60
    assert "8 of 8 steps" in done.stdout and "error" not in done.stdout and "The" in done.stdout


def test_it_trains_and_writes(flm, empty):
    run(flm, empty, "train", "debug=tiny", "hydra.run.dir=outputs/first")
    assert run(flm, empty, "generate", "outputs/first", "-n", "2", "--steps", "2", "--json").stdout.count("\n") == 2


def test_it_serves_the_official_client(flm, empty):
    openai = pytest.importorskip("openai")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([flm, "serve", "--port", str(port)], cwd=empty, env=environment(), stdout=subprocess.DEVNULL)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        for _ in range(600):
            assert server.poll() is None, "the server ended"
            try:
                assert [model.id for model in client.models.list()] == ["builtin:text"]
                break
            except openai.APIConnectionError:
                time.sleep(0.1)
        text = client.completions.create(model="any", prompt="The ", extra_body={"steps": 4}).choices[0].text
        assert len(text) > 20
    finally:
        server.terminate()
        server.wait(30)

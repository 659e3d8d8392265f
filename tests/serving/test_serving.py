"""The server as clients meet it: over a socket on loopback."""

import json
import math
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from serving.models import Gate, tiny

from flm.algos.ar import AR
from flm.serving.app import Server
from flm.serving.engine import Engine
from flm.serving.limits import Limits

uvicorn = pytest.importorskip("uvicorn")


@contextmanager
def running(lm, limits=None, api_key=None, template=None):
    """A server on a free port; its address and its engine."""
    engine = Engine(lm, limits)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(Server(engine, "toy", api_key, template).app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", engine
        finally:
            server.should_exit = True
            thread.join()
            engine.close()


@pytest.fixture(scope="module")
def parallel():
    lm = tiny()
    with running(lm) as (url, engine):
        yield lm, url, engine


def post(url, path="/v1/completions", **body):
    return httpx.post(url + path, json=body, timeout=600)


def events(url, path="/v1/completions", **body):
    """The parsed events of a streamed answer, without the last, [DONE]."""
    with httpx.stream("POST", url + path, json=body | {"stream": True}, timeout=600) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_seeded_request_gets_what_generate_gives(parallel):
    lm, url, _ = parallel
    texts = lm.generate(n=3, steps=2, prompt="the ", seed=5)
    found = post(url, prompt="the ", n=3, steps=2, seed=5, echo=True).json()
    end = lm.tokenizer.decode([lm.tokenizer.eos_id])
    assert [choice["text"] for choice in found["choices"]] == [text.split(end)[0] for text in texts]
    assert found["usage"]["prompt_tokens"] == 4
    lengths = [len(text.split(end)[0]) - 4 for text in texts]
    assert found["usage"]["completion_tokens"] == sum(lengths)
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop" if end in text else "length" for text in texts]


def test_holes_prompt_ids_and_several_prompts(parallel):
    lm, url, _ = parallel
    filled = post(url, "/v1/infill", template="the [4] a [2]", steps=2, seed=1).json()["choices"][0]["text"]
    assert [filled] == lm.infill("the [4] a [2]", steps=2, seed=1)
    between = post(url, prompt="a ", suffix=" mat", max_tokens=3, seed=2, echo=True).json()["choices"][0]
    assert between["text"].startswith("a ") and len(between["text"]) <= 5
    ids = lm.tokenizer.encode("cat")
    by_ids, by_text = (post(url, prompt=prompt, seed=3).json()["choices"][0]["text"] for prompt in (ids, "cat"))
    assert by_ids == by_text
    several = post(url, prompt=["cat", "mat"], n=2).json()["choices"]
    assert [choice["index"] for choice in several] == [0, 1, 2, 3]


def test_states_are_streamed_and_end_in_the_text(parallel):
    lm, url, _ = parallel
    found = events(url, "/v1/infill", template="the [12]", steps=3, seed=4)
    states = [event["flm"] for event in found if "flm" in event]
    assert [state["index"] for state in states] == [0, 1, 2] and all(state["steps"] == 3 for state in states)
    assert states[0]["given"] == [True] * 4 + [False] * 12 and states[0]["tokens"][:4] == list("the ")
    assert states[0]["probability"][:4] == [1.0] * 4 and 0 < min(states[0]["probability"]) <= 1
    text = found[-1]["choices"][0]["text"]
    assert text == "".join(states[-1]["tokens"]) == lm.infill("the [12]", steps=3, seed=4)[0]


def test_a_model_that_writes_left_to_right_streams_its_text():
    lm = tiny(AR)
    end = lm.tokenizer.decode([lm.tokenizer.eos_id])
    seed = next(seed for seed in range(100) if (lm.generate(prompt="the ", seed=seed)[0] + end).index(end) > 9)
    with running(lm) as (url, _):
        whole = post(url, prompt="the ", seed=seed, stop=["zz"]).json()["choices"][0]["text"]
        found = events(url, prompt="the ", seed=seed, stop=["zz"], stream_options={"include_usage": True})
        pieces = [choice["text"] for event in found for choice in event["choices"]]
        assert "".join(pieces) == whole and len(pieces) > 3
        assert found[-1]["usage"]["prompt_tokens"] == 4


def test_stops_cut(parallel):
    _, url, _ = parallel
    whole = post(url, seed=9).json()["choices"][0]["text"]
    stop = whole[3:5]
    cut = post(url, seed=9, stop=stop).json()["choices"][0]
    assert cut["text"] == whole[: whole.index(stop)] and cut["finish_reason"] == "stop"


BAD = [
    (b"{", 400, "json"),
    (b"[" * 100_000, 400, "body"),
    (b'{"prompt": 5}', 400, "prompt"),
    (b'{"n": 0}', 400, "n"),
    (b'{"n": true}', 400, "n"),
    (b'{"n": 33}', 400, "n: 33"),
    (b'{"steps": 0}', 400, "steps"),
    (b'{"steps": 100000}', 400, "steps"),
    (b'{"max_tokens": 17}', 400, "max_tokens: 17"),
    (b'{"prompt": "the cat sat on a mat."}', 400, "no room"),
    (b'{"prompt": "\xc3\xa9"}', 400, "cannot write"),
    (b'{"prompt": "\\ud800"}', 400, "hex escape"),
    (b'{"prompt": [1, 999]}', 400, "999"),
    (b'{"prompt": [-1]}', 400, "prompt"),
    (b'{"temperature": NaN}', 400, ""),
    (b'{"temperature": -1}', 400, "temperature"),
    (b'{"top_p": 2}', 400, "top_p"),
    (b'{"seed": -1}', 400, "seed"),
    (b'{"logprobs": 3}', 400, "logprobs"),
    (b'{"options": {"churm": 0.1}}', 400, "churm"),
    (b'{"options": {"churn": "much"}}', 400, "churn"),
    (b'{"stream": true, "n": 2}', 400, "stream"),
    (b'{"prompt": "' + b"a" * 1_000_001 + b'"}', 413, "larger"),
]


@pytest.mark.parametrize("body, status, says", BAD, ids=[str(body[:24]) for body, *_ in BAD])
def test_bad_requests_get_one_line(parallel, body, status, says):
    _, url, _ = parallel
    answer = httpx.post(url + "/v1/completions", content=body, timeout=600)
    assert answer.status_code == status, answer.text
    message = answer.json()["error"]["message"]
    assert says.lower() in message.lower() and "\n" not in message and len(message) < 400


def test_other_routes(parallel):
    _, url, engine = parallel
    assert httpx.get(url + "/health").json() == {"status": "ok", "model": "toy"}
    assert httpx.get(url + "/v1/models").json()["data"][0]["id"] == "toy"
    assert httpx.get(url + "/nothing").status_code == 404 and httpx.get(url + "/v1/completions").status_code == 405
    assert post(url, "/v1/infill", template="no hole").status_code == 400
    chat = post(url, "/v1/chat/completions", messages=[{"role": "user", "content": "hi"}])
    assert chat.status_code == 400 and "chat template" in chat.json()["error"]["message"]
    before = engine.counts.texts
    post(url, n=2)
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(url + "/metrics").text.splitlines() if line[0] != "#")
    assert float(lines["flm_texts_total"]) == before + 2 and float(lines["flm_waiting"]) == 0


def test_key():
    with running(tiny(), api_key="secret") as (url, _):
        assert post(url).status_code == 401 and httpx.get(url + "/health").status_code == 200
        wrong, right = ({"Authorization": f"Bearer {key}"} for key in ("wrong", "secret"))
        assert httpx.post(url + "/v1/completions", json={}, headers=wrong).status_code == 401
        assert httpx.post(url + "/v1/completions", json={}, headers=right, timeout=600).status_code == 200


def until(what, seconds=300):
    """Waits for what must come; the seconds only end a hang."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds
        time.sleep(0.005)


@contextmanager
def posted(answers, url, **body):
    """A request in a thread of its own, whose answer is put into a list; it has ended when this does."""
    thread = threading.Thread(target=lambda: answers.append(post(url, **body)))
    thread.start()
    yield
    thread.join()


def test_equal_settings_share_a_batch_and_others_do_not():
    lm = tiny()
    gate, answers = Gate(lm), []
    bodies = [{"steps": 2}] * 6 + [{"steps": 3}] + [{"steps": 2, "seed": 1}]
    with running(lm, Limits(batch=4)) as (url, engine), ExitStack() as asked:
        gate.let(0)
        asked.enter_context(posted(answers, url, steps=4))
        until(lambda: engine.running)
        for body in bodies:
            asked.enter_context(posted(answers, url, **body))
        until(lambda: engine.waiting == len(bodies))
        gate.let(math.inf)
        asked.close()
        assert [answer.status_code for answer in answers] == [200] * 9
        # the first; 4 + 2 of two steps; one of three; one with a seed of its own
        assert engine.counts.batches == 1 + 2 + 1 + 1 and engine.counts.texts == 9


def test_a_full_queue_and_time_that_is_up():
    lm = tiny()
    gate, answers = Gate(lm), []
    with running(lm, Limits(queue=1, seconds=0.5)) as (url, engine):
        gate.let(0)
        with posted(answers, url):
            until(lambda: engine.running)
            begun = time.monotonic()
            with posted(answers, url):
                until(lambda: engine.waiting)
                refused = post(url)
                assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
                until(lambda: time.monotonic() > begun + 1)
                gate.let(math.inf)
        assert [answer.status_code for answer in answers] == [504, 504]


def test_clients_that_leave_free_their_place():
    lm = tiny()
    gate = Gate(lm)
    with running(lm) as (url, engine):
        gate.let(0)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "/v1/completions", json={}, timeout=0.3)
        until(lambda: engine.running and engine._running[0].dropped)
        gate.let(math.inf)
        until(lambda: engine.counts.dropped == 1)
        until(lambda: not engine.running)
        gate.let(1)
        with httpx.stream("POST", url + "/v1/completions", json={"stream": True}, timeout=600) as answer:
            next(answer.iter_lines())
        until(lambda: engine._running[0].dropped)
        gate.let(math.inf)
        until(lambda: engine.counts.dropped == 2 and not engine.running)
        assert engine.counts.texts == 0 and post(url).status_code == 200


@pytest.mark.parametrize("many", ["candidates", "verify_draws"])
def test_further_candidates_cost_no_more_time_than_the_server_lends(many):
    """The steps of the first alone were looked at: a request of a million held the model for hours."""
    with running(tiny(), Limits(seconds=2.0)) as (url, _):
        assert post(url, steps=1, options={"candidates": 2, many: 100_000_000}).status_code == 504


def test_each_state_is_streamed_once_with_further_candidates(parallel):
    _, url, _ = parallel
    told = events(url, steps=2, options={"candidates": 3})
    assert [event["flm"]["index"] for event in told if "flm" in event] == [0, 1]


def test_the_official_client(parallel):
    openai = pytest.importorskip("openai")
    lm, url, _ = parallel
    client = openai.OpenAI(base_url=url + "/v1", api_key="none")
    end = lm.tokenizer.decode([lm.tokenizer.eos_id])
    wanted = lm.generate(prompt="the ", seed=7)[0].split(end)[0][4:]
    assert client.completions.create(model="toy", prompt="the ", seed=7).choices[0].text == wanted
    chunks = list(client.completions.create(model="toy", prompt="the ", seed=7, stream=True))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == wanted
    states = [chunk.flm for chunk in chunks if not chunk.choices]
    assert [state["index"] for state in states] == list(range(lm.steps))
    assert [model.id for model in client.models.list()] == ["toy"]
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="toy", prompt="the ", max_tokens=100)

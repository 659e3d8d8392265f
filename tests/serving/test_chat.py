"""Conversations: a model's own chat template, filled in without trusting it."""

import json

import pytest
import tokenizers
from serving.models import tiny
from serving.test_serving import post, running

from flm.data.pretrained_tokenizer import ChatTemplate
from flm.data.tokenizers import Tokenizer
from flm.serving.chat import chat_template

TEMPLATE = (
    "{%- for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ message.content }} {% endfor %}{% if add_generation_prompt %}on {% endif %}"
)
TALK = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "a"}]


def test_a_conversation_is_answered_as_its_prompt_is():
    openai = pytest.importorskip("openai")
    lm = tiny()
    template = ChatTemplate(TEMPLATE, lm.tokenizer, "here")
    assert template(TALK) == "the a on "
    with running(lm, template=template) as (url, _):
        wanted = post(url, prompt="the a on ", seed=3, max_tokens=5).json()["choices"][0]
        found = post(url, "/v1/chat/completions", messages=TALK, seed=3, max_tokens=5).json()["choices"][0]
        assert found["message"] == {"role": "assistant", "content": wanted["text"]}
        assert found["finish_reason"] == wanted["finish_reason"]
        client = openai.OpenAI(base_url=url + "/v1", api_key="none")
        chunks = client.chat.completions.create(model="toy", messages=TALK, seed=3, max_tokens=5, stream=True)
        assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == wanted["text"]
        refused = post(url, "/v1/chat/completions", messages=[{"role": "system", "content": "a"}, *TALK])
        assert refused.status_code == 400 and "no system" in refused.json()["error"]["message"]


def test_a_template_sees_who_speaks():
    lm = tiny()
    template = ChatTemplate(
        "{% for m in messages %}{{ m.name | default('no') }} {{ m.content }}{% endfor %}", lm.tokenizer, "here"
    )
    talk = [{"role": "user", "content": "the", "name": "cat"}]
    with running(lm, template=template) as (url, _):
        wanted = post(url, prompt="cat the", seed=3, max_tokens=5).json()
        found = post(url, "/v1/chat/completions", messages=talk, seed=3, max_tokens=5).json()
    assert found["choices"][0]["message"]["content"] == wanted["choices"][0]["text"]
    assert found["usage"] == wanted["usage"]


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].nothing.at.all }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_reaches_nothing_but_the_conversation(text):
    with pytest.raises(ValueError, match="the chat template"):
        ChatTemplate(text, tiny().tokenizer, "here")(TALK)


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.arguments | tojson }}{% endfor %}{% endfor %}",
        "{{ messages | tojson(indent=2) }}",
        "{{ messages[2] | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}",
        "{{ strftime_now('%Y')[:2] }}",
        "{% for m in messages %}\n  {%- if tools %}T{% endif %}\n{{ m.role }}\n{% endfor %}\n",
    ],
)
def test_a_template_writes_what_transformers_writes_by_it(text):
    """By which models are trained: another prompt would be one that the model has never seen."""
    transformers = pytest.importorskip("transformers")
    lm = tiny()
    calls = [{"arguments": {"q": "it's <5 & \u00e9"}}]
    talk = [{"role": "system", "content": "Be <b>kind</b> & 'true'."}, {"role": "user", "content": "\u00e9?"}]
    talk.append({"role": "assistant", "content": "", "tool_calls": calls})
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    wanted = theirs.apply_chat_template(talk, chat_template=text, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(text, lm.tokenizer, "here")(talk) == wanted


def test_where_a_template_is_found(tmp_path):
    lm = tiny()
    assert chat_template(lm) is None
    with pytest.raises(ValueError, match="--chat-template"):
        chat_template(lm, str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config {{ eos_token }}"}), encoding="utf-8")
    assert chat_template(lm, str(tmp_path))(TALK) == "config " + lm.tokenizer.token(lm.tokenizer.eos_id)
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert chat_template(lm, str(tmp_path))(TALK) == "file"
    lm.source = type("Source", (), {"path": tmp_path})()  # as of an exported folder
    assert chat_template(lm)(TALK) == "file"
    (tmp_path / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    with pytest.raises(ValueError, match="no chat template"):
        chat_template(lm)


def test_a_tokenizer_keeps_its_template_and_a_model_answers_by_it(tmp_path):
    lm = tiny()
    with pytest.raises(ValueError, match="no chat template"):
        lm.generate(chat=TALK)
    before = lm.tokenizer.fingerprint()
    lm.tokenizer.chat_template = TEMPLATE
    again = Tokenizer.from_dict(json.loads(json.dumps(lm.tokenizer.to_dict())))
    assert again.chat_template == TEMPLATE and again.fingerprint() == before
    whole = lm.generate(3, prompt="the a on ", seed=5)
    answers = lm.generate(3, chat=TALK, seed=5)
    end = lm.tokenizer.token(lm.tokenizer.eos_id)
    assert answers == [text.removeprefix("the a on ").partition(end)[0] for text in whole] and any(answers)
    assert chat_template(lm)(TALK) == "the a on "
    for wrong, said in (({"prompt": "a"}, "leave out prompt"), ({"chat": "hello"}, "chat")):
        with pytest.raises(ValueError, match=said):
            lm.generate(**{"chat": TALK} | wrong)

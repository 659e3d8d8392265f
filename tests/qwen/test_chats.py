import json
import math
from functools import partial

import pytest
import torch
from qwen_line import TEMPLATE, json_lines, with_template
from tiny_qwen3 import with_tokenizer

from flm.algos.ar import AR
from flm.code.code_eval import request_of
from flm.code.problems import ASK, load_problems
from flm.data.module import TextDataModule
from flm.data.pretrained_tokenizer import ChatTemplate, HuggingFaceTokenizer
from flm.data.tokenizers import Tokenizer
from flm.likelihood.bits_per_byte import scored_bytes
from flm.likelihood.held_out import likelihood
from flm.models.dit import DiT
from flm.qwen.chat import Chats, _warn_of_tools
from flm.qwen.examples import Unfit
from flm.qwen.mixture import MixtureCorpus
from flm.qwen.source import Source

ASKED, THOUGHT, END = "<|im_start|>assistant\n", "<think>\n\n</think>\n\n", "<|im_end|>"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "first <|im_end|>"},  # spells the end itself
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "second"},
]
BEFORE = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none?<|im_end|>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return with_template(with_tokenizer(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return HuggingFaceTokenizer(folder).build(lambda: iter(()))


def parts(example, tokenizer):
    return tokenizer.decode(example.tokens[: example.given]), tokenizer.decode(example.tokens[example.given :])


def test_every_answer_is_an_example_as_a_model_is_asked_for_it(folder, tokenizer):
    found = [parts(e, tokenizer) for e in Chats(folder)({"messages": TALK}, tokenizer)]
    first = BEFORE + ASKED, THOUGHT + "first <|im_end|>" + END
    second = (
        BEFORE + ASKED + "first <|im_end|>" + END + "\n<|im_start|>user\ntwo?<|im_end|>\n" + ASKED,
        THOUGHT + "second" + END,
    )
    assert found == [first, second]
    (last,) = Chats(folder, answers="last", thinking=False)({"messages": TALK}, tokenizer)
    assert parts(last, tokenizer) == (second[0] + THOUGHT, "second" + END)
    assert last.tokens[-1] == tokenizer.eos_id and last.tokens[-2] != tokenizer.eos_id
    asked = Chats(folder, messages_key=None, prompt_key="q", response_key="a")
    (example,) = asked({"q": "one?", "a": "it"}, tokenizer)
    assert parts(example, tokenizer) == ("<|im_start|>user\none?<|im_end|>\n" + ASKED, THOUGHT + "it" + END)


def test_a_model_is_asked_as_it_was_trained_to_answer(folder, talks):
    """The template of training goes with the tokenizer, an empty thought with it where training gave one."""
    for thinking, thought in ((None, ""), (True, ""), (False, THOUGHT)):
        reader = Chats(folder, thinking=thinking)
        module = module_of(folder, talks, reader=reader)
        asked = ChatTemplate.of(Tokenizer.from_dict(module.tokenizer.to_dict()))([{"role": "user", "content": "say 3"}])
        assert asked == "<|im_start|>user\nsay 3<|im_end|>\n" + ASKED + thought
        (example, *_) = reader({"messages": TALK[1:3]}, module.tokenizer)
        assert parts(example, module.tokenizer)[0] == asked.replace("say 3", "one?")


def test_an_answer_that_a_template_does_not_end_gets_an_end(tmp_path, tokenizer):
    bare = with_template(with_tokenizer(tmp_path), "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                         "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    (example,) = Chats(bare, answers="last")({"messages": TALK[1:3]}, tokenizer)
    assert parts(example, tokenizer) == ("user: one?\nassistant: ", "first <|im_end|>")
    (example,) = Chats(bare)({"messages": [TALK[1], {"role": "assistant", "content": "it"}]}, tokenizer)
    assert parts(example, tokenizer)[1] == "it" + END


CALLS = (
    "{% if tools is defined and tools %}tools {{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}: {{ m.content }}"
    "{% for c in m.tool_calls | default([]) %}call {{ c.function | tojson }}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_calls_of_tools_are_written_by_the_template_and_learned(tmp_path, tokenizer, caplog):
    folder = with_template(with_tokenizer(tmp_path / "calls"), CALLS)
    call = {"name": "add", "arguments": {"a": 1}}
    talk = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
        {"role": "tool", "content": "3", "name": "add"},
        {"role": "assistant", "content": "three"},
    ]
    tools = [{"function": {"name": "add"}}]
    # a row without these keys gives the others nulls
    json_lines(tmp_path / "talk" / "a.jsonl", [{"messages": talk, "tools": tools}, {"messages": TALK, "tools": None}])
    reader = Chats(folder, tools_key="tools")
    source = Source("talk", 1.0, reader, path=tmp_path / "talk")
    with_calls, without = [source.examples(r, "a.jsonl", tokenizer) for r in source.read(source.files()[0])]
    before = f"tools {json.dumps(tools)}\nuser: 1+2?\nassistant: "
    written = f"call {json.dumps(call)}"
    assert [parts(e, tokenizer) for e in with_calls] == [
        (before, written + END),
        (before + written + "\ntool add: 3\nassistant: ", "three" + END),
    ]
    assert parts(without[0], tokenizer)[0] == "system: Be brief.\nuser: one?\nassistant: "
    as_json = reader({"messages": talk, "tools": json.dumps(tools)}, tokenizer)
    assert parts(next(as_json), tokenizer)[0] == before
    assert not caplog.messages
    _warn_of_tools.cache_clear()
    for _ in range(2):
        (first, _) = Chats(folder)({"messages": talk}, tokenizer)
    assert parts(first, tokenizer)[0] == before.partition("\n")[2]
    assert [line for line in caplog.messages if "data.reader.tools_key" in line] == caplog.messages and len(
        caplog.messages
    ) == 1
    for wrong in ("{", "3", {"a": 1}):
        with pytest.raises(Unfit, match='"tools" '):
            list(reader({"messages": talk, "tools": wrong}, tokenizer))


def test_a_thought_that_is_not_asked_for_is_told(tmp_path, tokenizer):
    marked = TEMPLATE.replace("'<think>\\n\\n</think>", "'<think>\\n' + m.reasoning_content | default('') + '\\n</think>", 1)
    folder = with_template(with_tokenizer(tmp_path), marked)
    talk = {"messages": [TALK[1], {"role": "assistant", "content": "it", "reasoning_content": "so"}]}
    (example,) = Chats(folder, thinking=True)(talk, tokenizer)
    assert parts(example, tokenizer)[1] == "<think>\nso\n</think>\n\nit" + END
    with pytest.raises(Unfit, match=r"reasoning: data\.reader\.thinking=true"):
        list(Chats(folder, thinking=False)(talk, tokenizer))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "text"}, "must hold messages"),
        ({"messages": [{"role": "user"}]}, "a role and a content"),
        ({"messages": TALK[:2]}, "no message of the role"),
    ],
)
def test_records_that_are_no_conversation(record, message, folder):
    with pytest.raises(Unfit, match=message):
        Chats(folder).text(record)


def test_a_template_that_is_not_there_or_not_of_one_piece(tmp_path, folder, tokenizer):
    with pytest.raises(ValueError, match=r"data\.reader\.template=.*no chat template"):
        list(Chats(with_tokenizer(tmp_path / "bare"))({"messages": TALK}, tokenizer))
    other = with_template(
        with_tokenizer(tmp_path / "other"),
        TEMPLATE.replace("{%- if add_generation_prompt -%}", "{%- if add_generation_prompt -%}?"),
    )
    with pytest.raises(Unfit, match="does not begin an answer as it asks for one"):
        list(Chats(other)({"messages": TALK}, tokenizer))


def module_of(folder, path, **options):
    corpus = {"sources": {"talk": {"hub": "some/talk", "weight": 1.0}}, "path": path, "valid_fraction": 0.2, "readers": 2}
    corpus = MixtureCorpus(**{"reader": Chats(folder)} | corpus | options)
    return TextDataModule(corpus, HuggingFaceTokenizer(folder), length=160, seed=2, global_batch_size=4)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("talks")
    talks = [
        [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "x" * (i % 7) + str(i)}] for i in range(30)
    ]
    talks.append([{"role": "user", "content": "long"}, {"role": "assistant", "content": "y" * 200}])
    json_lines(root / "talk" / "a.jsonl", [{"messages": talk} for talk in talks])
    return root


def test_answers_alone_are_learned_whole_conversations_share_rows_and_padding_is_told_by_place(folder, talks):
    module = module_of(folder, talks)
    end, pad = module.tokenizer.eos_id, module.tokenizer.pad_id
    assert end != pad
    said = set()
    for batch in module.train_loader(0, 12):
        for tokens, weight, documents in zip(batch.tokens, batch.weight, batch.documents, strict=True):
            assert (tokens[documents < 0] == pad).all() and (weight[documents < 0] == 0).all() and (documents >= 0).any()
            assert int(documents.max()) > 0  # two or more of these fit
            for number in range(int(documents.max()) + 1):
                inside = documents == number
                prompt = module.tokenizer.decode(tokens[inside & (weight == 0)])
                answer = module.tokenizer.decode(tokens[inside & (weight > 0)])
                assert prompt.startswith("<|im_start|>user\nsay ") and prompt.endswith(ASKED)
                assert answer.startswith(THOUGHT) and answer.endswith(END) and answer.count(END) == 1
                assert answer.removesuffix(END).endswith(prompt.split("say ")[1].split("<")[0])
                said.add(answer)
    held = {json.loads(text)[1]["content"] for text in module.valid_documents()}
    assert held and len(said) == 30 - len(held - {"y" * 200})
    valid = [module.valid_blocks().row(i) for i in range(len(module.valid_blocks()))]
    assert sum(int((row.tokens[row.weight > 0] == end).sum()) for row in valid) == len(held - {"y" * 200})


def test_what_a_likelihood_of_conversations_is_divided_by_counted_by_hand(folder, talks):
    """Answers with what the template writes around them: prompts, padding and other conversations of a row are not counted."""
    module = module_of(folder, talks)
    held = [json.loads(text)[1]["content"] for text in module.valid_documents()]
    answers = [THOUGHT + content + END for content in held if len(content) < 200]
    ids = [module.tokenizer.encode(answer) for answer in answers]
    batches = list(module.valid_loader())
    assert sum(int(batch.counted.sum()) for batch in batches) == sum(map(len, ids))
    assert all(int(batch.counted.sum()) == int(batch.scored.sum()) for batch in batches)  # padding is of no document
    assert scored_bytes(batches, module.tokenizer) == sum(len(answer.removesuffix(END).encode()) for answer in answers)
    tiny = AR(partial(DiT, length=160, hidden_size=16, num_blocks=1, num_heads=2, cond_dim=8), module.vocab_size, 160).eval()
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.zero_()  # every token is as likely as any other
    found = likelihood(tiny, batches, 1, 0)
    assert found.num_tokens == sum(map(len, ids)) and found.nats_per_token.mean == pytest.approx(math.log(module.vocab_size))


def test_the_given_part_of_a_prompt_grows_from_its_beginning(folder, talks):
    grown = list(module_of(folder, talks, prompt_growth_steps=8).train_loader(0, 10))
    plain = list(module_of(folder, talks).train_loader(0, 10))
    for step, (early, whole) in enumerate(zip(grown, plain, strict=True)):
        assert torch.equal(early.tokens, whole.tokens)
        for weight, full, documents in zip(early.weight, whole.weight, whole.documents, strict=True):
            for number in range(int(documents.max()) + 1):
                inside = documents == number
                prompt, given = int((full[inside] == 0).sum()), weight[inside] == 0
                assert given.sum() == round(prompt * min(1, step / 8)) and given[: int(given.sum())].all()


def test_a_stream_of_conversations_resumes_bit_for_bit(folder, talks):
    whole = list(module_of(folder, talks).train_loader(0, 9))
    module = module_of(folder, talks)
    assert len(list(module.train_loader(0, 4))) == 4
    other = module_of(folder, talks)
    other.load_state_dict(json.loads(json.dumps(module.state_dict())))
    for ours, theirs in zip(other.train_loader(4, 9), whole[4:], strict=True):
        assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in ("tokens", "weight", "documents"))


def test_a_source_without_an_example_that_fits_says_so(folder, tmp_path):
    long = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "y" * 200}]} for i in range(9)]
    json_lines(tmp_path / "talk" / "a.jsonl", long)
    with pytest.raises(ValueError, match=r"data\.sources\.talk: an epoch of it has no example of at most model\.length=160"):
        next(iter(module_of(folder, tmp_path).train_loader(0, 1)))


def test_a_problem_is_put_as_the_template_writes_a_question(tokenizer, tmp_path):
    """The template came with the tokenizer, and stays with it; a token of it that a text spells is that token."""
    again = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.chat_template == tokenizer.chat_template == TEMPLATE
    row = {"task_id": "HumanEval/0", "prompt": "import math\n\ndef twice(x):\n", "entry_point": "twice"}
    row |= {"canonical_solution": "    return 2 * x\n", "test": "def check(f):\n    assert f(2) == 4\n"}
    (problem,) = (one.as_question() for one in load_problems(json_lines(tmp_path / "one.jsonl", [row])))
    prompt, hole = request_of(problem, again, 400, 30, "reference", 0, ChatTemplate.of(again))
    text = again.decode(prompt)
    assert text == f"<|im_start|>user\n{ASK}\n\n```python\nimport math\n\ndef twice(x):\n```{END}\n{ASKED}" and hole == 30
    assert prompt.count(again.eos_id) == 1
    answer = "```python\ndef twice(x):\n    return math.floor(2 * x)\n```"
    assert problem.source([problem.cut(answer)]) == "import math\ndef twice(x):\n    return math.floor(2 * x)\n"
    assert request_of(problem, again, 100, 30, "reference", 0, ChatTemplate.of(again)).startswith("longer than")

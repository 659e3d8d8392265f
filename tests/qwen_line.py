"""What the three stages start from, in the smallest: a folder of Qwen3 with a chat template, and texts to train on."""

import json
from pathlib import Path

from running import command
from scripts.launching import run_script
from tiny_qwen3 import tiny_qwen3, with_tokenizer

TINY = ["debug=tiny_qwen3", "strategy=auto", "logger=none", "callbacks.progress=null", "callbacks.sample=null"]
TINY += [
    "model.length=96",
    "data.readers=2",
    "data.valid_fraction=0.2",
    "data.valid_documents=4",
    "callbacks.forecast.after_steps=1",
]

# In the manner of Qwen3's: an answer begins with an empty thought where none is wanted, and only the last keeps it.
TEMPLATE = (
    "{%- set last = namespace(user=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}"
    "{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- if m.role == 'assistant' and loop.index0 > last.user -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{{- m.content + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{%- endif -%}"
)


def qwen_folder(folder: Path, template: str = TEMPLATE, **shape) -> Path:
    """258 ids, so 6 of the 264 rows are free. <|im_start|> is no token of its own here."""
    tiny_qwen3(folder, **{"vocab_size": 264, "hidden_size": 48, "intermediate_size": 96, "eos_token_id": 257} | shape)
    return with_template(with_tokenizer(folder), template)


def with_template(folder: Path, template: str = TEMPLATE) -> Path:
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def json_lines(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def script(monkeypatch, folder, name, *overrides, **variables):
    """Runs in this process what a script would run; overrides go to its last command."""
    done, calls = run_script(name, folder / "stub", **{key: str(value) for key, value in variables.items()})
    assert done.returncode == 0, done.stderr
    *before, last = calls
    for call in before:
        assert command(monkeypatch, *call) == 0
    assert command(monkeypatch, *last, *overrides) == 0

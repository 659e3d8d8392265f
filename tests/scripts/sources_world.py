"""What the capitals of docs/sources.md stand for, made when a command first wants it; and what makes each command small."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch
from code_files import HUMAN_EVAL, MBPP
from code_files import write as write_rows
from published.published_layouts import flm_v1, tokenizer_folder
from qwen_line import json_lines, qwen_folder
from scripts.forked_python import serve
from scripts.launching import VARIABLES
from scripts.sources_page import ROOT, Command
from scripts.stand_ins import documents, write_lm1b, write_openwebtext
from tasks.running import write_corpus

QUICK = ["trainer.max_steps=2", "logger=none", "callbacks.progress=null", "callbacks.sample=null", "callbacks.generation=null"]
TINY = ["debug=tiny", *QUICK, "lr_scheduler.warmup_steps=1"]
LOOK = [
    "loader.eval_batch_size=4",
    "eval.max_examples=4",
    "eval.pilot_draws=2",
    "eval.draws_per_example=1",
    "trainer.accelerator=cpu",
]

# by what a command looks like: overrides that make it small, all that fit; the last that sets a key wins
SMALL: list[tuple[str, list[str]]] = [
    (r"scripts/train_(lm1b|owt)_|experiment=owt_", [*TINY, "model.cond_dim=8", "model.num_blocks=1"]),
    (r"scripts/gen_ppl_", ["debug=tiny", "sampling.steps=[1,2]", "trainer.accelerator=cpu", "loader.eval_batch_size=3"]),
    (r"_owt_|experiment=owt_", ["data.valid_documents=30"]),
    (
        r"train_(fineweb|tinystories|lamini|wmt14_de_en)_kl_flow",
        [*TINY, "model.length=24", "tokenizer=bytes", "data.path=FILES"],
    ),
    (r"train_(fineweb|tinystories|lamini|wmt14_de_en)_kl_flow", ["data.subset=null", "data.processes=1"]),
    (r"train_fineweb", ["data.valid_documents=5"]),
    (r"train_lamini", ["data.valid_fraction=0.3"]),
    (
        r"experiment=code_infilling",
        [
            *TINY,
            "model.length=128",
            "data.layout.line_length=24",
            "tokenizer=bytes",
            "data.valid_path=PAIRS.jsonl",
            "strategy=auto",
        ],
    ),
    (r"experiment=pydoc_", [*TINY, "data=text", "data.path=TEXTS", "data.valid_fraction=0.2", "tokenizer=characters"]),
    (r"experiment=pydoc_flm_fitted", ["tokenizer=bytes"]),
    (r"mode=import", ["trainer.accelerator=cpu"]),
    (r"mode=(sample_eval|frontier)", ["debug=tiny", "loader.eval_batch_size=4", "trainer.accelerator=cpu"]),
    (r"mode=frontier", ["frontier.steps=[2]", "frontier.temperature=[1.0]"]),
    (r"mode=(ppl_eval|flow_lm_eval|golf_eval|artifact|conditional_eval|code_eval)", LOOK),
    (r"mode=ppl_eval", ["eval.pilot_draws=32"]),
    (r"mode=(flow_lm_eval|artifact)", ["flow_lm_eval.points=3", "flow_lm_eval.ends=[0.3]"]),
    (r"mode=(golf_eval|artifact)", ["golf_eval.stride=8", "golf_eval.max_tokens=300", "golf_eval.test_time_training.epochs=1"]),
    (r"mode=(conditional_eval|code_eval|sample_eval)", ["sampling.steps=[2]"]),
    (r"mode=code_eval|scripts/evaluate.sh", ["code_eval.new_tokens=8", "sampling.steps=2"]),
    (r"scripts/evaluate.sh", ["trainer.accelerator=cpu"]),
    (r"scripts/train_(pretrain|midtrain|sft).sh", ["debug=tiny_qwen3", "strategy=auto", *QUICK, "model.length=96"]),
    (r"scripts/train_(pretrain|midtrain|sft).sh", ["data.readers=2", "data.valid_fraction=0.2", "data.valid_documents=4"]),
    (r"scripts/train_(pretrain|midtrain|sft).sh", ["callbacks.forecast.after_steps=1", "lr_scheduler.warmup_steps=1"]),
    (r"scripts/golf_flow_lm.sh", [*TINY, "data=text", "data.path=TEXTS", "data.valid_fraction=0.2", "tokenizer=characters"]),
    (r"scripts/golf_native_flow.sh", [*TINY, "model.length=32", "model.bigram_rows=16", "model.bigram_width=8"]),
    (
        r"scripts/golf_native_flow.sh --multirun",
        ["data=text", "data.path=TEXTS", "data.valid_fraction=0.2", "tokenizer=characters"],
    ),
]
# of scripts that pass no overrides on to what they run second
NO_OVERRIDES = re.compile(r"scripts/inference.py|python -c|scripts/gpu_check.sh")


class World:
    """Files by the names of the page."""

    def __init__(self, folder: Path):
        self.folder, self._made, self._python = folder, dict[str, Path](), serve(folder / "bin")

    def __getitem__(self, name: str) -> Path:
        if name not in self._made:
            stem, _, kind = name.partition(".")
            if name not in MAKERS:
                raise AssertionError(f"docs/sources.md names {name}, and tests/scripts/sources_world.py does not make it")
            made = MAKERS[name]
            place = self.folder / name
            self._made[name] = self.trained(stem.lower(), made) if isinstance(made, str) else made(self, place)
        return self._made[name]

    def trained(self, stem: str, line: str) -> Path:
        """The checkpoint of a command."""
        done, out = self.run(line, stem)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return out / "checkpoints" / "last.ckpt"

    def run(self, line: str, stem: str) -> tuple[subprocess.CompletedProcess, Path]:
        """The finished process, made small, and the folder it was to write to."""
        out = self.folder / "runs" / stem
        command = Command.of(line)
        added = [] if NO_OVERRIDES.search(line) else [word for look, words in SMALL if re.search(look, line) for word in words]
        if not NO_OVERRIDES.search(line) and not added:
            raise AssertionError(f"{line}: tests/scripts/sources_world.py does not know what makes it small")
        added = list({word.partition("=")[0]: word for word in added}.values())  # of a key the last
        multirun = "--multirun" in command.words
        if not NO_OVERRIDES.search(line) and not re.search(r"golf_flow_lm.sh|evaluate.sh", line):
            added += [f"hydra.{'sweep' if multirun else 'run'}.dir={out}"]
        command = Command(command.variables, (*command.words, *added))
        command = command.with_files({name: self[name] for name in command.names})
        environment = {key: value for key, value in os.environ.items() if key not in (*VARIABLES, "WORLD_SIZE", "RANK")}
        environment |= {"PATH": f"{self._python}:{environment['PATH']}", "FLM_VENV": "none", "PYTHONPATH": str(ROOT)}
        environment |= {"OUT": str(out), "OUTPUT_DIR": str(out), "HF_HUB_OFFLINE": "1"} | command.variables
        program = shutil.which(command.words[0], path=environment["PATH"])
        words = [program, *command.words[1:]]
        return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900), out


def data(world: World, place: Path) -> Path:
    write_lm1b(place)
    write_openwebtext(place)
    return place


def files(world: World, place: Path) -> Path:
    """Of every data set of KL-flow at once: a record has the keys of all."""
    records = [
        {"text": f"sentence {n} about a river", "instruction": f"name {n}", "response": "blue"}
        | {"translation": {"de": f"Haus {n}", "en": "a house"}}
        for n in range(40)
    ]
    for split in ("train", "validation"):
        json_lines(place / f"{split}.jsonl", records)
    return place


def pairs(world: World, place: Path) -> Path:
    return write_rows(place, [{"prompt": f"def f{n}(x):\n", "response": f"    y = x + {n}\n    return y\n"} for n in range(20)])


def mix(world: World, place: Path) -> Path:
    """A folder of text for each source of the three stages, under the key each is read by."""
    for config in (ROOT / "configs" / "data").glob("qwen3_*.yaml"):
        for source in re.findall(r"^  (\w+): \{hub", config.read_text(), re.M):
            texts = [text * 3 for text in documents(80, 2, seed=len(source))]
            keys = ("text", "article", "content", "markdown", "abstract")
            talks = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}."}] for n in range(80)]
            records = [dict.fromkeys(keys, text) | {"messages": talk} for text, talk in zip(texts, talks, strict=True)]
            json_lines(place / source / "a.jsonl", records)
    return place


def benchmarks(world: World, place: Path) -> Path:
    place.mkdir()
    write_rows(place / "HumanEval.jsonl.gz", HUMAN_EVAL[:1])
    examples = [MBPP[0] | {"task_id": number} for number in (2, 3, 4)]
    write_rows(place / "mbpp.jsonl", [*examples, *MBPP[1:]])
    return place


def published(world: World, place: Path) -> Path:
    torch.save(flm_v1()[0], place)
    return place


def shards(world: World, place: Path) -> Path:
    from flm.golf.shard_files import write_shard
    from flm.texts.sentencepiece import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer(path=str(world["PIECES.model"])).build(lambda: iter(()))
    place.mkdir()
    for split, seed in (("train", 3), ("val", 4)):
        ids = [token for text in documents(60, 4, seed) for token in tokenizer.encode(text)]
        write_shard(place / f"fineweb_{split}_000000.bin", torch.tensor(ids).numpy())
    return place


def pieces(world: World, place: Path) -> Path:
    import sentencepiece

    stem = str(place.with_suffix(""))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents(200, 4, 5)), model_prefix=stem, vocab_size=300, model_type="bpe", byte_fallback=True
    )
    return place


MAKERS = {
    "DATA": data,
    "FILES": files,
    "TEXTS": lambda world, place: write_corpus(place),
    "PAIRS.jsonl": pairs,
    "HUMANEVAL.jsonl": lambda world, place: write_rows(place, HUMAN_EVAL[:1]),
    "BENCHMARKS": benchmarks,
    "PUBLISHED.ckpt": published,
    "WORDS": lambda world, place: tokenizer_folder(place),
    "QWEN": lambda world, place: qwen_folder(place),
    "MIX": mix,
    "SHARDS": shards,
    "PIECES.model": pieces,
    "LM1B_FLM.ckpt": "DATA_DIR=DATA bash scripts/train_lm1b_flm.sh",
    "OWT_FLM.ckpt": "DATA_DIR=DATA bash scripts/train_owt_flm.sh",
    "LM1B_FMLM.ckpt": "DATA_DIR=DATA TEACHER_PATH=LM1B_FLM.ckpt bash scripts/train_lm1b_fmlm.sh",
    "LM1B_RESIDUAL.ckpt": "DATA_DIR=DATA TEACHER_PATH=LM1B_FLM.ckpt bash scripts/train_lm1b_flm_distill.sh",
    "OWT_RESIDUAL.ckpt": "DATA_DIR=DATA TEACHER_PATH=OWT_FLM.ckpt bash scripts/train_owt_flm_distill.sh",
    "LAMINI.ckpt": "DATA_DIR=DATA bash scripts/train_lamini_kl_flow.sh",
    "KL_FLOW.ckpt": "python main.py experiment=pydoc_kl_flow",
    "INFILLING.ckpt": "python main.py experiment=code_infilling_kl_flow data.path=PAIRS.jsonl",
    "QWEN_FLOW.ckpt": "QWEN_PATH=QWEN DATA_DIR=MIX bash scripts/train_pretrain.sh",
    "FLOW_LM.ckpt": "python main.py experiment=pydoc_golf_flow_lm",
    "AR.ckpt": "python main.py experiment=pydoc_ar",
    "NATIVE.ckpt": "DATA_DIR=SHARDS TOKENIZER=PIECES.model bash scripts/golf_native_flow.sh",
}

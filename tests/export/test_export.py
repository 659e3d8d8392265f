"""A model leaves as a Hugging Face folder and comes back the same, here and in transformers."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import huggingface_hub
import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from tasks.running import command

import flm
from flm.checkpoints import files
from flm.checkpoints.build import build_algorithm
from flm.checkpoints.description import KEY, Description
from flm.checkpoints.folder import READ, shareable
from flm.checkpoints.hub import download
from flm.checkpoints.load import load_algorithm, read_checkpoint
from flm.checkpoints.model_file import generation_defaults
from flm.data.tokenizers import BPETokenizer, ByteTokenizer, CharacterTokenizer
from flm.export.from_python import save_pretrained
from flm.export.hf_folder import CARD, GENERATING, MODELING, TOKENIZER_CONFIG, write_folder
from flm.export.model_card import model_card
from flm.export.upload import push_to_hub
from flm.two_stage.flm_distill import raw

LENGTH = 6
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
FILES = (*READ, TOKENIZER_CONFIG, MODELING, GENERATING, CARD)
DOCUMENTS = ["A cat sees, a dog hears.", "one  bird sees the sea. na\u00efve caf\u00e9 <|end|> 'tis"] * 4
SIZES = {"length": LENGTH, "hidden_size": 16, "num_blocks": 2, "num_heads": 2, "cond_dim": 8}
KINDS = {
    "flm": ({"_target_": "flm.algos.flm.FLM", "clock": None}, {"time_scale": 100.0, "grid": [2, 3]}, CharacterTokenizer()),
    "flm_evidence": ({"_target_": "flm.algos.flm.FLM", "reads": "evidence"}, {"neighbours": 2}, CharacterTokenizer()),
    "fmlm_evidence": ({"_target_": "flm.algos.fmlm.FMLM", "reads": "evidence"}, {"neighbours": 1}, CharacterTokenizer()),
    "fmlm": (
        {"_target_": "flm.algos.fmlm.FMLM", "learnable_loss_weighting": True, "teacher_path": "/home/someone/teacher.ckpt"},
        {"attention_softcap": 5.0, "output_softcap": 2.0, "mlp_ratio": 3},
        ByteTokenizer(),
    ),
    "flm_token": (
        {"_target_": "flm.algos.flm.FLM", "clock": None},
        {"time_insertion": "token", "attention_softcap": 5.0},
        CharacterTokenizer(),
    ),
    "flm_add": ({"_target_": "flm.algos.flm.FLM", "clock": None}, {"time_insertion": "add"}, CharacterTokenizer()),
    "ar": ({"_target_": "flm.algos.ar.AR"}, {"attention_softcap": 5.0, "output_softcap": None, "grid": [9]}, BPETokenizer(270)),
    "ar_plain": ({"_target_": "flm.algos.ar.AR"}, {"attention_softcap": None}, CharacterTokenizer()),
    "flm_distill": ({"_target_": "flm.two_stage.flm_distill.FLMDistill"}, {"output_softcap": 2.0}, CharacterTokenizer()),
}


def checkpoint(path, kind):
    """A model with random weights everywhere, its average other random weights."""
    algo, network, builder = KINDS[kind]
    tokenizer = builder.build(lambda: iter(DOCUMENTS))
    tokenizer.name = "/home/someone/tokenizer"  # as of one that was given as a folder
    tokenizer.chat_template = TEMPLATE if kind == "ar" else None
    config = {
        "algo": algo,
        "model": {"_target_": "flm.models.dit.DiT"} | SIZES | network,
        "data": {"_target_": "flm.data.corpora.text.TextCorpus", "path": "/home/someone/secret/corpus"},
        "sampling": {"steps": [1, 3], "temperature": 0.8, "gamma": None, "length": None, "film": False},
        "run_dir": "/home/someone/run",
        "seed": 3,
    }
    torch.manual_seed(len(kind))
    algorithm = build_algorithm(config, tokenizer.vocab_size)
    state = {name: torch.randn_like(tensor) * 0.3 for name, tensor in algorithm.state_dict().items()}
    average = {name: torch.randn_like(p) * 0.3 for name, p in algorithm.named_parameters() if p.requires_grad}
    description = Description(config, tokenizer.to_dict(), tokenizer.vocab_size, LENGTH, 12, average, 12).to_dict()
    files.save({"state_dict": {f"algorithm.{k}": v for k, v in state.items()}, KEY: description}, path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By kind: the checkpoint, and the folder exported from it."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for kind in KINDS:
        path = checkpoint(root / f"{kind}.ckpt", kind)
        algorithm, file = load_algorithm(path)
        assert set(write_folder(root / kind, algorithm, file, model_card(kind, algorithm, file))) == set(FILES)
        made[kind] = (path, root / kind)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_weights_tokenizer_and_recipe_come_back_bit_for_bit(models, kind):
    path, folder = models[kind]
    wanted, file = load_algorithm(path)
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert stored.keys() == wanted.state_dict().keys()
    for name, average in read_checkpoint(path).average.items():
        assert stored[name].dtype == average.dtype and torch.equal(stored[name], average)
    found, exported = load_algorithm(folder)
    assert type(found) is type(wanted) and not found.training
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert exported.tokenizer == file.tokenizer | {"name": "tokenizer"} and exported.step == 12
    assert exported.generation == {"steps": 3, "options": {"temperature": 0.8}}
    assert exported.config["model"] == file.config["model"] and exported.config["sampling"] == file.config["sampling"]


def test_tied_weights_and_the_last_step(tmp_path):
    path = checkpoint(tmp_path / "x.ckpt", "ar")
    algorithm, file = load_algorithm(path, use_average=False)
    body = algorithm.backbone.body
    body.output_layer.linear.weight = body.input_table  # one tensor under two names
    write_folder(tmp_path / "out", algorithm, file, "")
    stored = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    for name in ("backbone.body.output_layer.linear.weight", "backbone.body.input_table"):
        assert torch.equal(stored[name], read_checkpoint(path).state["backbone.body.input_table"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["flm"]["weights"] == "last step"


IN_TRANSFORMERS = """
import sys
sys.modules["flm"] = None  # as where it is not installed
import torch
from transformers import AutoModel, AutoTokenizer, GenerationConfig
root, wanted = sys.argv[1], torch.load(sys.argv[2], weights_only=True)
for kind, calls in wanted.items():
    model, info = AutoModel.from_pretrained(f"{root}/{kind}", trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    assert not model.training
    worst = 0.0
    for arguments, logits in calls["logits"]:
        with torch.no_grad():
            worst = max(worst, (model(**arguments).logits - logits).abs().max().item())
    # trust_remote_code left out makes transformers ask about the model's code, for the tokenizer too
    tokenizer = AutoTokenizer.from_pretrained(f"{root}/{kind}", trust_remote_code=False)
    for text, ids in calls["ids"]:
        assert tokenizer.encode(text) == ids, (kind, text)
        assert tokenizer.decode(ids) == calls["decoded"][text], (kind, text)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == calls["special"]
    assert len(tokenizer) == model.config.vocab_size and model.config.length == 6
    if kind == "ar":
        assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a "
    assert GenerationConfig.from_pretrained(f"{root}/{kind}").eos_token_id == calls["special"][1]
    print(kind, worst)
    assert worst < 1e-5
"""


def logits_of(posterior):
    return torch.cat([logits for _, logits in posterior.logit_chunks()]).view(*posterior.shape, -1)


def test_transformers_opens_it_without_this_package_and_predicts_the_same(models, tmp_path):
    wanted = {}
    generator = torch.Generator().manual_seed(5)
    state, tau = torch.randn(3, LENGTH, 16, generator=generator), torch.tensor([0.0, 0.4, 0.9])
    later = torch.tensor([0.3, 0.4, 1.0])
    for kind, (_, folder) in models.items():
        algorithm, exported = load_algorithm(folder)
        tokens = torch.randint(0, algorithm.vocab_size, (3, LENGTH), generator=generator)
        calls = []
        with torch.no_grad():
            if kind.startswith("ar"):
                calls.append(({"input_ids": tokens}, logits_of(algorithm.backbone(tokens))))
            elif kind == "flm_distill":
                calls.append(({"inputs_embeds": state, "tau": tau}, logits_of(algorithm.base(state, tau))))
                residual = raw(algorithm.residual(state, tau, later)).chunk(slice(None)).view(3, LENGTH, -1)
                arguments = {"inputs_embeds": state, "tau": tau, "tau_to": later, "network": "residual", "softcapped": False}
                calls.append((arguments, residual))
            else:
                calls.append(({"inputs_embeds": state, "tau": tau}, logits_of(algorithm.backbone(state, tau))))
                embedded = algorithm.backbone.input_table[tokens]
                calls.append(({"input_ids": tokens, "tau": tau}, logits_of(algorithm.backbone(embedded, tau))))
            if kind == "fmlm":
                arguments = {"inputs_embeds": state, "tau": tau, "tau_to": later}
                calls.append((arguments, logits_of(algorithm.backbone(state, tau, later))))
        assert all(logits.std() > 0.1 for _, logits in calls)
        tokenizer = KINDS[kind][2].build(lambda: iter(DOCUMENTS))
        ids = [(text, tokenizer.encode(text)) for text in (*DOCUMENTS[:2], " two  spaces , kept . ", "zzz Q")]
        wanted[kind] = {
            "logits": calls,
            "ids": ids,
            "decoded": {text: tokenizer.decode(row) for text, row in ids},
            "special": (tokenizer.bos_id, tokenizer.eos_id),
        }
    torch.save(wanted, tmp_path / "wanted.pt")
    root = next(iter(models.values()))[1].parent
    done = subprocess.run(
        [sys.executable, "-c", IN_TRANSFORMERS, str(root), str(tmp_path / "wanted.pt")],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(KINDS)


def test_the_folder_holds_the_model_and_nothing_of_the_run(models, tmp_path, monkeypatch):
    run = ["mode=export", f"eval.checkpoint_path={models['flm'][0]}", f"hydra.run.dir={tmp_path / 'folder'}"]
    assert command(monkeypatch, *run, "trainer.accelerator=cpu") == 0
    assert {path.name for path in (tmp_path / "folder").iterdir()} == set(FILES)
    lm = flm.load(models["flm"][0], device="cpu")
    assert set(save_pretrained(lm, tmp_path / "again", license="apache-2.0")) == set(FILES)
    for name in set(FILES) - {CARD}:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes(), name
    assert (tmp_path / "again" / CARD).read_text().startswith('---\nlicense: "apache-2.0"')
    lm.source = None
    with pytest.raises(ValueError, match="^the model was made in Python: "):
        save_pretrained(lm, tmp_path / "never")
    assert not (tmp_path / "never").exists()


THROUGH_TRANSFORMERS = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
import flm

torch.set_num_threads(1)
root, saved, *kinds = sys.argv[1:]
for kind in kinds:
    folder = f"{root}/{kind}"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = flm.load(folder, device="cpu")
    prompt = tokenizer("A ", return_tensors="pt").input_ids
    wanted = [text.ids for text in lm.generate(n=3, prompt="A ", steps=2, seed=4)]
    assert model.generate(prompt, num_return_sequences=3, steps=2, seed=4).tolist() == wanted, kind
    warm = [text.ids for text in lm.generate(n=3, prompt="A ", steps=2, seed=4, temperature=3.0)]
    assert model.generate(prompt, num_return_sequences=3, steps=2, seed=4, temperature=3.0).tolist() == warm, kind
    assert warm != wanted or kind != "ar"
    # greedy, and prompts of two lengths padded on the left: each is what it would be alone
    cold = {"do_sample": False, "max_new_tokens": 2, "seed": 1, "steps": 2}
    longer = torch.cat((prompt, prompt[:, :1]), 1)
    both = torch.cat((torch.nn.functional.pad(prompt, (1, 0)), longer))
    found = model.generate(both, attention_mask=torch.tensor([[0] + [1] * prompt.shape[1], [1] * longer.shape[1]]), **cold)
    assert torch.equal(found[:1, 1:], model.generate(prompt, **cold)) and torch.equal(found[1:], model.generate(longer, **cold))
    if kind == "flm":  # do_sample=False leaves the other options as they are, and what is no number of texts is told
        more = cold | {"max_new_tokens": 20}
        assert not torch.equal(model.generate(prompt, **more), model.generate(prompt, **more, frequency_penalty=50.0))
        wrong = [{"max_new_tokens": 0}, {"num_return_sequences": 0}, {"do_sample": False, "nonsense": 1}]
        wrong.append({"input_ids": prompt + 10**6})
        for one in wrong:
            try:
                model.generate(**{"input_ids": prompt, "steps": 2} | one)
            except ValueError as error:
                assert next(reversed(one)) in str(error), error
            else:
                raise AssertionError(one)
    torch.manual_seed(0)
    made = pipeline("text-generation", model=model, tokenizer=tokenizer)("A ", num_return_sequences=2)
    assert len(made) == 2 and all(one["generated_text"].startswith("A") for one in made), made
    with torch.no_grad():  # as after a fine-tuning
        for parameter in model.parameters():
            parameter.mul_(1.25)
    tuned = model.generate(prompt, num_return_sequences=3, steps=2, seed=4, temperature=0.5).tolist()
    model.save_pretrained(f"{saved}/{kind}")
    tokenizer.save_pretrained(f"{saved}/{kind}")
    again = flm.load(f"{saved}/{kind}", device="cpu")
    assert [t.ids for t in again.generate(n=3, prompt="A ", steps=2, seed=4, temperature=0.5)] == tuned, kind
    assert AutoModelForCausalLM.from_pretrained(f"{saved}/{kind}", trust_remote_code=True).config.length == lm.length
    print("fine", kind)
"""


def test_transformers_writes_with_it_and_what_it_saves_loads(models, tmp_path):
    pytest.importorskip("transformers")
    kinds = ["flm", "flm_evidence", "fmlm", "ar"]
    done = subprocess.run(
        [sys.executable, "-c", THROUGH_TRANSFORMERS, str(models["ar"][1].parent), str(tmp_path / "saved"), *kinds],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("fine") == len(kinds)


def test_nothing_of_the_machine_is_shared(models):
    for _, folder in models.values():
        assert {path.name for path in folder.iterdir()} == set(FILES)
        for name in set(FILES) - {"model.safetensors"}:
            assert "someone" not in (folder / name).read_text(), name
    cut = shareable({"data": {"paths": ["~/x/corpus", "C:\\y\\z", "relative/path", "/"]}, "run_dir": "/r", "seed": 1})
    assert cut == {"data": {"paths": ["corpus", "z", "relative/path", ""]}, "seed": 1}


def test_generation_defaults_follow_the_record():
    assert generation_defaults({}) == {"steps": 64, "options": {}}
    recorded = {"sampling": {"steps": 5, "gamma": 0.5, "churn": None, "prompt": "x", "film": True}}
    assert generation_defaults(recorded) == {"steps": 5, "options": {"gamma": 0.5}}


def edited(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = content
        for key in parents:
            node = node[key]
        node[last] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "spoil,message",
    [
        (lambda f: (f / "config.json").unlink(), "it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not a readable JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json: not a readable JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'), "not a model of this project"),
        (lambda f: edited(f, flm__format_version=2), "folder format 2.*reads format 1"),
        (lambda f: edited(f, flm__config=[]), "damaged: config"),
        (lambda f: edited(f, vocab_size="9"), "damaged: vocab_size"),
        (lambda f: edited(f, flm__config__algo___target_="os.system"), "os.system refused"),
        (lambda f: edited(f, flm__config__model___target_="subprocess.Popen"), "subprocess.Popen refused"),
        (lambda f: edited(f, flm__config__model__num_heads=0), "no model can be built"),
        (lambda f: edited(f, flm__config__model__hidden_size=2**40), "no model can be built"),
        (lambda f: edited(f, flm__config__model__hidden_size=32), "model.safetensors: the weights do not fit.*and .* more"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), "not a readable safetensors"),
        (lambda f: os.truncate(f / "model.safetensors", 4000), "not a readable safetensors"),
        (lambda f: (f / "generation_config.json").write_text('{"flm": 3}'), "must hold steps and options"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(models, tmp_path, spoil, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in READ:
        (folder / name).write_bytes((models["flm"][1] / name).read_bytes())
    load_algorithm(folder)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_algorithm(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


class Hub:
    """A hub on this machine: what huggingface_hub asks of the real one to make a repository, commit to it and read it."""

    def __init__(self):
        hub = self
        self.files, self.created, self.tokens, self.refuse = {}, [], set(), False

        class Handler(BaseHTTPRequestHandler):
            def body(self):
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def answer(self, content, status=200, **headers):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for key, value in headers.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def do_POST(self):
                body = self.body()
                hub.tokens.add(self.headers.get("Authorization"))
                if hub.refuse:
                    return self.answer({"error": "You may not write here"}, 403)
                if self.path == "/api/validate-yaml":
                    return self.answer({"errors": [], "warnings": []})
                if self.path == "/api/repos/create":
                    hub.created.append(json.loads(body))
                    return self.answer({"url": f"{hub.url}/me/model"})
                if self.path.endswith("/preupload/main"):
                    wanted = json.loads(body)["files"]
                    modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in wanted]
                    return self.answer({"files": modes})
                if "/commit/main" in self.path:
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    return self.answer({"commitUrl": f"{hub.url}/me/model/commit/{'a' * 40}", "commitOid": "a" * 40})
                return self.answer({}, 404)

            def do_GET(self):
                path = self.path.partition("?")[0]
                siblings = [{"rfilename": name, "size": len(data)} for name, data in hub.files.items()]
                if path.startswith("/api/models/me/model/tree/"):
                    listed = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in hub.files.items()]
                    return self.answer(listed)
                if path.startswith("/api/models/me/model"):
                    return self.answer({"id": "me/model", "sha": "a" * 40, "siblings": siblings})
                if path.startswith("/me/model/resolve/"):
                    name = unquote(path.rpartition("/")[2])
                    return self.answer(hub.files[name], ETag=f'"{name}"', X_Repo_Commit="a" * 40)
                return self.answer({}, 404)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    hub = Hub()
    yield hub
    hub.server.shutdown()


def test_to_the_hub_and_back(models, hub, tmp_path):
    folder = models["flm"][1]
    (folder / "command_line.log").write_text("where this was run")
    try:
        address = push_to_hub(folder, FILES, "me/model", private=True, endpoint=hub.url)
    finally:
        (folder / "command_line.log").unlink()
    assert address.endswith("/commit/" + "a" * 40) and hub.tokens == {"Bearer hf_of_a_test"}
    assert hub.created[0]["name"] == "model" and hub.created[0]["organization"] == "me"
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert hub.files == {name: (folder / name).read_bytes() for name in FILES}  # and nothing else of the folder

    local = download("me/model", endpoint=hub.url)
    assert {path.name for path in local.iterdir()} == set(READ)  # no code
    found, wanted = load_algorithm(local)[0].state_dict(), load_algorithm(folder)[0].state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_raw_checkpoint_of_the_hub(models, hub, tmp_path):
    checkpoint = models["flm"][0].read_bytes()
    hub.files = {"run[1].ckpt": checkpoint, "run1.ckpt": b"another", "evil.py": b"raise SystemExit", "README.md": b"-"}
    path = download("me/model", endpoint=hub.url, file="run[1].ckpt")
    assert path.name == "run[1].ckpt" and path.read_bytes() == checkpoint
    assert [found.name for found in path.parent.iterdir()] == ["run[1].ckpt"]  # nothing else travels
    load_algorithm(path)
    for file, message in {
        "owt_fmlm.ckpt": r"^me/model: the repository holds no file owt_fmlm\.ckpt, but README\.md, evil\.py, run1\.ckpt",
        None: r"^me/model: the repository holds no exported model \(config\.json\), but .*: name a checkpoint by file=$",
        "../x.ckpt": "no path inside a repository",
        "/etc/passwd": "no path inside a repository",
        "": "no path inside a repository",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            download("me/model", endpoint=hub.url, file=file)
        assert "\n" not in str(caught.value)
    hub.server.shutdown()
    hub.server.server_close()
    assert download("me/model", endpoint=hub.url, file="run[1].ckpt") == path  # without network


def test_a_hub_that_refuses_and_one_that_is_not_there(models, hub, tmp_path, monkeypatch):
    folder = models["flm"][1]
    hub.refuse = True
    with pytest.raises(ValueError, match="export.repo_id=me/model: not uploaded.*is whole$"):
        push_to_hub(folder, FILES, "me/model", private=True, endpoint=hub.url)
    assert not hub.files
    with pytest.raises(ValueError, match="export.repo_id=model is no name"):
        push_to_hub(folder, FILES, "model", private=True, endpoint=hub.url)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="export.repo_id=me/model needs a login.*HF_TOKEN"):
        push_to_hub(folder, FILES, "me/model", private=True, endpoint=hub.url)
    with pytest.raises(ValueError, match="^me/other: no such file or folder here.*give a local folder") as caught:
        download("me/other", endpoint="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)

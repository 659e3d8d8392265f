"""What is said of answers: rates, coverage, controls with known values, calls counted, and the mode as a whole."""

import json
import math
import random
import shutil
from itertools import permutations
from string import ascii_lowercase

import hydra
import pytest
import torch
from every_algorithm import NAMES, L, V, build
from running import config_of
from torch import nn

from flm.data.tokenizers import CharacterTokenizer
from flm.language_model import LanguageModel
from flm.models.dit import DiT
from flm.puzzles.controls import IdealMaskedDiffusion, propagated, random_fill, searched
from flm.puzzles.permutation import Permutation
from flm.puzzles.result_kinds import SOLVE_EVAL
from flm.puzzles.rules import HOLE, Puzzle, Rules
from flm.puzzles.scores import coverage, solve_rates, verdicts_on
from flm.puzzles.sudoku import Sudoku
from flm.puzzles.writing import Writer
from flm.results.kinds import Source
from flm.samplers.canvas import Canvas
from flm.tasks.samples import counted_calls


@pytest.fixture(scope="module")
def corpus():
    return Sudoku(4, train=None, valid=None, held_out=0.15, givens="scattered")


def test_solved_is_valid_and_consistent_and_not_agreement():
    corpus = Sudoku(4, train=None, valid=None)
    two = Puzzle("0034341200434321".replace("0", HOLE), "1234341221434321")
    other, cheat = "2134341212434321", "4132234114233214"
    answers = [[two.answer, other, cheat, cheat], [cheat, cheat, cheat, ""]]
    rates = solve_rates(verdicts_on([two, two], answers, corpus.rules), [1, 2])
    assert rates["solved"] == {"mean": 0.25, "standard_error": 0.25, "count": 2}
    assert rates["valid"]["mean"] == (4 / 4 + 3 / 4) / 2 and rates["consistent"]["mean"] == 0.25
    assert rates["agrees"]["mean"] == 0.125
    # 1 - C(2, 2) / C(4, 2) of the first puzzle, 0 of the second
    assert rates["pass_at"]["2"]["mean"] == pytest.approx((1 - 1 / 6) / 2) and rates["pass_at"]["1"]["mean"] == 0.25


def test_a_decoder_that_repeats_itself_is_told_by_its_coverage(corpus):
    whole, rules = corpus.everything(), corpus.rules
    everything = coverage(whole, rules)
    assert everything["distinct"] == 288 and everything["entropy_nats"] == pytest.approx(math.log(288))
    repeating = coverage([whole[3]] * 500, rules, corpus.is_held_out)
    assert repeating["valid"]["mean"] == 1 and repeating["distinct"] == 1 and repeating["entropy_nats"] == 0
    assert repeating["largest_share"] == 1 and repeating["held_out"] == float(corpus.is_held_out(whole[3]))
    # 1,024 uniform draws of 288 grids hit 279.8 different ones in the mean
    rng = random.Random(0)
    hits = [coverage([rng.choice(whole) for _ in range(1024)], rules)["distinct"] for _ in range(20)]
    assert abs(sum(hits) / 20 - 279.8) < 2
    assert coverage(["1" * 16], rules)["entropy_nats"] is None


def test_ideal_masked_diffusion_by_number_of_evaluations(corpus):
    """4x4 grids: 0, 0.2, 18, 59 and 100 % valid in 1, 2, 4, 8 and 16 evaluations."""
    ideal, blank = IdealMaskedDiffusion(corpus.everything()), [HOLE * 16] * 600
    for steps, share in ((1, 0.0), (4, 0.18), (8, 0.59), (16, 1.0)):
        answers = ideal(blank, steps, torch.Generator().manual_seed(steps))
        found = sum(map(corpus.rules.valid, answers)) / len(answers)
        assert abs(found - share) < 4 * (max(share * (1 - share), 1e-9) / 600) ** 0.5 + 0.02, (steps, found)
    small = IdealMaskedDiffusion(["".join(order) for order in permutations("abc")])
    answers = small([HOLE * 3] * 3000, 1, torch.Generator().manual_seed(0))
    assert abs(sum(sorted(a) == list("abc") for a in answers) / 3000 - 6 / 27) < 4 * (6 / 27 * 21 / 27 / 3000) ** 0.5
    # what is given stays, and what it decides is decided at once
    assert set(small(["ab."] * 50, 1, torch.Generator().manual_seed(0))) == {"abc"}


def test_other_controls(corpus):
    rng, puzzles = random.Random(0), corpus.puzzles("valid")
    for puzzle in puzzles[:10]:
        assert searched(puzzle, corpus.rules) == puzzle.answer
        filled = propagated(puzzle, corpus.rules)
        assert all(f in (HOLE, a) for f, a in zip(filled, puzzle.answer, strict=True))
        assert corpus.rules.check(puzzle.givens, random_fill(puzzle, "1234", rng)).consistent

    class Outside(Rules):  # somebody else's task: a check alone
        def valid(self, answer: str) -> bool:
            return answer == answer[::-1]

    assert Outside().check("a.", "aa", "ab") == (True, True, False)
    assert propagated(Puzzle("a.", "aa"), Outside()) is None and searched(Puzzle("a.", "aa"), Outside()) is None


# of 3 steps over 8 positions; KL-flow reads its text out in a last call, the first stage of distillation calls its teacher too
CALLS = {"ar": L, "native_flow": L, "kl_flow": 4, "flm_distill": 6}


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_answers_every_call_counts_and_givens_stay(name):
    corpus = Permutation(size=L, givens="own", clues=2, train=20, valid=6)
    tokenizer = CharacterTokenizer().build(lambda: [ascii_lowercase + "{"])
    assert tokenizer.vocab_size == V
    model = build(name).float().eval()
    puzzles = corpus.puzzles("valid")
    written = Writer(LanguageModel(model, tokenizer), corpus, 12, 0)(puzzles, 2, 3)
    assert written.evaluations == CALLS.get(name, 3) and written.left_out == 0
    assert all(len(given) == 2 for given in written.answers)
    rates = solve_rates(verdicts_on(puzzles, written.answers, corpus.rules), [1])
    assert rates["consistent"]["mean"] == 1
    # two answers to one puzzle come from different noise
    assert any(first != second for first, second in written.answers)


def test_ten_puzzles_of_a_grid_are_one_as_far_as_errors_go(corpus):
    """Two grids, each with all of its puzzles solved or none."""
    several = Sudoku(4, train=None, valid=None, held_out=0.15, givens="scattered", variants=3)
    first, second = list(dict.fromkeys(puzzle.answer for puzzle in several.puzzles("valid")))[:2]
    puzzles = [puzzle for puzzle in several.puzzles("valid") if puzzle.answer in (first, second)]
    assert len(puzzles) == 6
    verdicts = verdicts_on(puzzles, [[first] for _ in puzzles], several.rules)
    groups = [puzzle.answer for puzzle in puzzles]
    rates = solve_rates(verdicts, [1], groups)
    assert rates["solved"] == {"mean": 0.5, "standard_error": 0.5, "count": 2} == rates["pass_at"]["1"]
    assert solve_rates(verdicts, [1])["solved"]["standard_error"] == pytest.approx(math.sqrt(0.3 / 6))


def test_puzzles_that_do_not_fit_are_named():
    corpus, short = Permutation(size=L, givens="own", clues=2, train=20, valid=6), Puzzle("a.", "ab")
    tokenizer = CharacterTokenizer().build(lambda: [ascii_lowercase + "{"])
    writer = Writer(LanguageModel(build("mdlm").float().eval(), tokenizer), corpus, 12, 0)
    puzzles = corpus.puzzles("valid")
    assert writer.misfits(puzzles) == [] and writer.misfits([]) == []
    assert writer.misfits([*puzzles, short]) == ["model.length=8: rows of these puzzles have 2 positions"]
    assert writer([*puzzles, short], 1, 2).left_out == 1
    with pytest.raises(ValueError, match="none of the 1 puzzles fits"):
        writer.misfits([short])


def test_calls_of_several_networks_add_up():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = dict(vocab_size=4, length=16, hidden_size=16, num_blocks=1, num_heads=2, cond_dim=8, dropout=0.0)
            self.first, self.second = DiT(**sizes), DiT(**sizes)

    model, view = Two(), torch.zeros(1, 16, 16)
    with counted_calls(model) as calls:
        model.first(view, torch.zeros(1))
        model.second(view, torch.zeros(1))
    model.first(view, torch.zeros(1))
    assert sum(calls) == 2


def source_of(content, path):
    return Source(path, "solve_eval", "run", None, None, None, None, "", None, {}, content)


def run(config):
    return hydra.utils.get_method(config.mode._target_)(config)


TINY = ["model=micro", "model.hidden_size=16", "model.num_blocks=1", "model.num_heads=2", "tokenizer=characters"]


@pytest.mark.parametrize("layout,algo", [("holes", "flm"), ("prompt", "ar")])
def test_trained_and_evaluated_from_the_command_line(tmp_path, layout, algo):
    length = 16 if layout == "holes" else 32
    options = [f"algo={algo}", "data=sudoku", f"data.layout={layout}", *TINY, f"model.length={length}", "callbacks.sample=null"]
    options += ["algo.clean_given=true"] if algo == "flm" else []
    options += ["callbacks.generation=null", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    run(config_of(tmp_path / "train", *options))
    checkpoint = tmp_path / "train/checkpoints/last.ckpt"
    evaluate = [f"eval.checkpoint_path={checkpoint}", "sampling.steps=[1,2]", "solve_eval.puzzles=12", "solve_eval.samples=3"]
    results = run(
        config_of(tmp_path / "solve", "mode=solve_eval", *evaluate, "solve_eval.written=40", "loader.eval_batch_size=64")
    )
    written = json.loads((tmp_path / "solve/solve_eval.json").read_text())
    assert written["kind"] == "solve_eval" and written["puzzles"]["by_steps"] == results["puzzles"]["by_steps"]
    expected = {"1": 1, "2": 2} if algo == "flm" else {"16": 16}
    assert {steps: entry["evaluations"] for steps, entry in results["puzzles"]["by_steps"].items()} == expected
    for entry in results["puzzles"]["by_steps"].values():
        assert entry["consistent"]["mean"] == 1 and entry["solved"]["mean"] == entry["valid"]["mean"]
        assert list(entry["pass_at"]) == ["1"]
    controls = results["puzzles"]["controls"]
    assert controls["exact solver"]["solved"]["mean"] == 1 and controls["random fill"]["consistent"]["mean"] == 1
    # one control for all models, whatever steps they are measured in
    for part, noun in (("puzzles", "solved"), ("written", "valid")):
        ideal = {name: entry[noun]["mean"] for name, entry in results[part]["controls"].items() if name.startswith("ideal")}
        assert list(ideal) == [f"ideal masked, {count}" for count in (1, 2, 4, 8, 16)] and ideal["ideal masked, 16"] == 1
    reading = SOLVE_EVAL.read(source_of(written, tmp_path))
    names = [table.name for table in reading.tables]
    assert names == ["written_from_nothing", "puzzles_solved"] and len(reading.plots) == 4 and reading.numbers
    spoiled = json.loads(json.dumps(written))
    spoiled["puzzles"]["by_steps"][next(iter(expected))]["solved"]["mean"] = "all"
    with pytest.raises(ValueError, match="solved.mean"):
        SOLVE_EVAL.read(source_of(spoiled, tmp_path))
    chance = results["written"]["controls"]["random fill"]["valid"]["mean"]
    assert chance == pytest.approx(288 / 4**16) and results["written"]["space_nats"] == pytest.approx(math.log(288))
    steps = next(iter(expected))
    lines = [json.loads(line) for line in (tmp_path / f"solve/solved-{steps}.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and all(len(line["answers"]) == 3 for line in lines)
    film = json.loads((tmp_path / f"solve/film-solved-{steps}.json").read_text())
    assert film["kind"] == "film" and film["columns"] == 4 and film["frames"]
    with pytest.raises(ValueError, match="solve_eval.samples"):
        run(config_of(tmp_path / "bad", "mode=solve_eval", *evaluate[:2], "solve_eval.samples=0"))
    more = ["solve_eval.puzzles=60", "solve_eval.written=0", "sampling.steps=[1]", "loader.eval_batch_size=64"]
    found = run(config_of(tmp_path / "more", "mode=solve_eval", evaluate[0], *more))["puzzles"]
    grids = {
        json.loads(line)["reference"] for line in next((tmp_path / "more").glob("solved-*.jsonl")).read_text().splitlines()
    }
    assert found["count"] == 60 and {entry["solved"]["count"] for entry in found["by_steps"].values()} == {len(grids)} == {48}
    # data whose rows the model does not have: not a rate of 0
    other = ["eval.real_data=current", "data=sudoku", f"data.layout={'prompt' if layout == 'holes' else 'holes'}"]
    with pytest.raises(ValueError, match=f"none of the 12 puzzles fits.*model.length={length}: rows .* have {48 - length}"):
        run(config_of(tmp_path / "bad", "mode=solve_eval", *evaluate, *other))
    with pytest.raises(ValueError, match="holds no puzzles"):
        run(config_of(tmp_path / "bad", "mode=solve_eval", evaluate[0], "eval.real_data=current", "data=pydoc"))


def test_canvases_of_puzzles(corpus):
    tokenizer = CharacterTokenizer().build(lambda: corpus.documents("train"))
    puzzle = corpus.puzzles("valid")[0]
    ids, holes = corpus.request(puzzle, tokenizer, 16)
    canvas = Canvas(torch.tensor([ids]), torch.tensor([holes]))
    right = canvas.fill(torch.tensor([tokenizer.encode(puzzle.answer)]))
    assert corpus.read(right[0].tolist(), puzzle, tokenizer) == puzzle.answer
    assert "?" in corpus.read([tokenizer.eos_id] * 16, puzzle, tokenizer)


def test_results_side_by_side(tmp_path, capsys):
    """Two made-up results: shares by evaluations, training time with the teacher's, and the answer that took one evaluation."""

    def entry(evaluations, share):
        valid = {"mean": share, "standard_error": 0.01 if share else 0.0, "count": 100}
        about = {"distinct": 7, "entropy_nats": 1.25 if share else None, "ms_per_answer": 0.5}
        return {"steps": evaluations, "evaluations": evaluations, "valid": valid, **about}

    for name, counts, algo in (("flow_map", {1: 0.36, 4: 0.8}, {"teacher_path": str(tmp_path / "flm/checkpoints/last.ckpt")}),
                               ("flm", {1: 0.0, 4: 0.6}, {})):  # fmt: skip
        run_folder, folder = tmp_path / name, tmp_path / f"{name}_solve"
        (run_folder / "checkpoints").mkdir(parents=True)
        folder.mkdir()
        (run_folder / "run.json").write_text(json.dumps({"config": {"algo": algo}}))
        (run_folder / "checkpoints/last.ckpt").write_bytes(b"")
        (run_folder / "status.json").write_text(json.dumps({"cpu_seconds": 100.2}))
        part = {"count": 100, "space_nats": 5.66, "by_steps": {str(n): entry(n, share) for n, share in counts.items()}}
        part["controls"] = {"ideal masked, 4": {"valid": {"mean": 0.18, "standard_error": 0.0, "count": 100}}}
        checkpoint = {"path": str(run_folder / "checkpoints/last.ckpt")}
        content = {"format_version": 1, "kind": "solve_eval", "label": name, "checkpoint": checkpoint, "written": part}
        (folder / "solve_eval.json").write_text(json.dumps(content))
        (folder / "film-written-1.json").write_text(json.dumps({"columns": 2}))
        lines = [{"answers": ["1221"], "solved": [False]}, {"answers": ["3443"], "solved": [name == "flow_map"]}]
        (folder / "written-1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = ",".join(str(tmp_path / f"{name}_solve") for name in ("flm", "flow_map"))
    run(config_of(tmp_path / "out", "mode=side_by_side", f"side_by_side.runs=[{names}]"))
    lines = [line.replace(" ", "") for line in capsys.readouterr().out.splitlines()]
    assert "│flm,100CPUs│0.0│60.0±1.0│" in lines and "│flow_map,200CPUs│36.0±1.0│80.0±1.0│" in lines
    assert "│idealmasked││18.0│" in lines
    assert lines.count("│flm,100CPUs│7│7│") == 1 and "│flm,100CPUs││1.25│" in lines and "│flm,100CPUs│0.50│0.50│" in lines
    assert any("flow_map,oneevaluation" in line for line in lines) and "│34│" in "".join(lines)
    # the same name twice: two seeds, whose mean and error, 10 points on either side, make one row
    again = tmp_path / "seed2/flow_map_solve"
    shutil.copytree(tmp_path / "flow_map_solve", again)
    content = json.loads((again / "solve_eval.json").read_text())
    content["written"]["by_steps"] = {"1": entry(1, 0.16), "4": entry(4, 0.9)}
    (again / "solve_eval.json").write_text(json.dumps(content))
    run(config_of(tmp_path / "out", "mode=side_by_side", f"side_by_side.runs=[{names},{again}]"))
    lines = [line.replace(" ", "") for line in capsys.readouterr().out.splitlines()]
    assert "│flow_map,2seeds,200CPUs│26.0±10.0│85.0±5.0│" in lines
    # a teacher named by its run's folder, as the tutorials do
    (tmp_path / "flow_map/run.json").write_text(json.dumps({"config": {"algo": {"teacher_path": str(tmp_path / "flm")}}}))
    run(config_of(tmp_path / "out", "mode=side_by_side", f"side_by_side.runs=[{names}]"))
    assert "│flow_map,200CPUs│" in capsys.readouterr().out.replace(" ", "")
    with pytest.raises(ValueError, match="nowhere"):
        run(config_of(tmp_path / "out", "mode=side_by_side", "side_by_side.runs=[nowhere]"))

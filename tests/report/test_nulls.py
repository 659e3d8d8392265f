"""Texts that no model wrote have the statistics their makers say, and orders of runs change where they were made to."""

import math
from collections import Counter

import pytest
from chi_square import chi_square_limit

from flm.measures.diversity import repetition, unigram_entropy
from flm.report.frontier.nulls import PHRASE, nulls, sizes
from flm.report.frontier.rankings import BEST, RAW, changes, rankings
from flm.tasks.held_out import RealText

L, COUNT = 48, 200


def real_text():
    """Blocks of a language with four frequent tokens and a tail, in which 5-grams recur."""
    blocks = [[(i * i + b) % 4 if i % 3 else 4 + (i * 7 + b) % 40 for i in range(L)] for b in range(60)]
    return RealText("made up", blocks, list(range(0, 60, 6)))


def made():
    found = {}
    for null in nulls(real_text(), COUNT, L, 3):
        assert len(null.rows) == COUNT and all(len(row) == L for row in null.rows)
        found.setdefault(null.name, {})[null.size] = null.rows
    return found


def frequencies():
    real = real_text()
    return Counter(token for i, block in enumerate(real.blocks) if i not in real.chosen for token in block)


def test_periodic_texts_have_the_entropy_and_repetition_of_their_period():
    for k, rows in made()["periodic tokens"].items():
        if L % k == 0:
            assert unigram_entropy(rows[0]) == pytest.approx(math.log(k))
        assert repetition(rows[0], 2) == pytest.approx(1 - min(k, L - 1) / (L - 1))
        assert set(rows[0]) == {token for token, _ in frequencies().most_common(k)}


def test_draws_follow_the_frequencies_and_mirrored_ones_repeat_themselves():
    table = frequencies()
    for k, rows in made()["unigram draws"].items():
        common = table.most_common(k)
        counts, total = Counter(token for row in rows for token in row), sum(count for _, count in common)
        want = {token: COUNT * L * count / total for token, count in common}
        assert counts.keys() <= want.keys()
        statistic = sum((counts[token] - mean) ** 2 / mean for token, mean in want.items())
        assert statistic < chi_square_limit(1e-4, k - 1)
    for rows in made()["mirrored draws"].values():
        assert all(row[: L // 2] == row[L // 2 :] for row in rows) and rows[0] != rows[1]


def test_shuffled_repeated_and_strung_texts_are_made_of_real_text():
    real, found = real_text(), made()
    (rows,) = found["shuffled text"].values()
    assert all(Counter(row) == Counter(real.rows[i % 10]) for i, row in enumerate(rows)) and rows[0] != real.rows[0]
    for size, rows in found["repeated passage"].items():
        assert size <= L // 2
        for i, row in enumerate(rows[:10]):
            assert row == [real.rows[i][j % size] for j in range(L)]
    others = [block for i, block in enumerate(real.blocks) if i not in real.chosen]
    grams = Counter(tuple(b[i : i + PHRASE]) for b in others for i in range(L - PHRASE + 1))
    for m, rows in found["frequent phrases"].items():
        allowed = {gram for gram, _ in grams.most_common(m)}
        assert all(tuple(row[i : i + PHRASE]) in allowed for row in rows for i in range(0, L - PHRASE + 1, PHRASE))


def test_the_same_seed_gives_the_same_texts_and_sizes_are_spread():
    assert made() == made()
    assert [null.rows for null in nulls(real_text(), 5, L, 4)] != [null.rows for null in nulls(real_text(), 5, L, 3)]
    assert sizes(4, 256) == [4, 16, 64, 256] and sizes(4, 3) == [3] and sizes(4, 0) == []


# Orders ---------------------------------------------------------------------------------------------------------------


def point(run, log_ppl, error=0.01, **options):
    return {"settings": {"run": run, "steps": 8, **options}, "log_ppl": {"mean": log_ppl, "standard_error": error}}


def row(run, log_ppl, penalty, error=0.01, steps=8):
    about = {"run": run, "steps": steps, "frequency_penalty": penalty, "target": "data", "target_entropy_nats": 2.0}
    return about | {"ppl": math.exp(log_ppl), "log_ppl": log_ppl, "log_ppl_error": error, "closest_temperature": None}


def test_orders_under_one_policy_and_another():
    points = [point(run, y, temperature=t, frequency_penalty=0.0) for run, y in (("a", 1.0), ("b", 2.0)) for t in (1.0, 0.5)]
    rows = [row("a", 3.0, 0.0), row("b", 2.5, 0.0), row("a", 1.5, 2.0), row("b", 1.9, 2.0), row("c", 9.0, 2.0)]
    plain = {"temperature": 1.0, "frequency_penalty": 0.0}
    found = {one.by: one for one in rankings(points, rows, "data", plain)}
    assert found[RAW].order == ["a", "b"] and found[RAW].log_ppl == {"a": 1.0, "b": 2.0}
    assert found["equal entropy, frequency_penalty 0.0"].order == ["b", "a"]
    assert found["equal entropy, frequency_penalty 2.0"].order == ["a", "b", "c"]
    assert found[BEST].log_ppl == {"a": 1.5, "b": 1.9, "c": 9.0}
    said = changes(list(found.values()))
    assert f"8 steps: a is ahead of b by {RAW}, and behind it by equal entropy, frequency_penalty 0.0" in said
    assert len(said) == 3 and not any("within" in one or " c " in one for one in said)


def test_what_is_within_its_errors_is_said_to_be():
    rows = [row("a", 3.0, 0.0, 0.5), row("b", 2.9, 0.0, 0.5), row("a", 1.5, 2.0), row("b", 1.9, 2.0)]
    (first, *_) = changes(rankings([point("a", 1.0)], rows, "data", {}))
    assert first.endswith("(within two standard errors in one of them)")


def test_a_run_of_one_number_of_steps_stands_beside_all_others():
    points = [point("flow", 2.0), point("flow", 1.0) | {"settings": {"run": "flow", "steps": 16}}, point("ar", 1.5)]
    points[2]["settings"]["steps"] = 64
    found = rankings(points, [], "data", {}, ["ar"])
    assert [(one.steps, one.order) for one in found] == [("8", ["ar", "flow"]), ("16", ["flow", "ar"])]
    assert changes(found) == []  # other steps are another comparison

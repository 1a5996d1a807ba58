"""The rule of primary claims keeps its promise over two thousand papers with known truth."""

import numpy as np
import pytest

from madet.boxes.errors import BadInput
from madet.tables.evidence import FIRST, NOT_DECIDED, Claim, judge, undecided_rows
from madet.tables.grid import read_grid


def drawn(levels, rng, noise=0.01, common=0.3):
    """{row: {seed: AP}} of ten seeds; `common`: the share of the variance that a seed brings to all rows."""
    moves = rng.normal(0, noise * (common / (1 - common)) ** 0.5, 2 * FIRST)
    table = {}
    for name, level in levels.items():
        values = level + moves + rng.normal(0, noise, 2 * FIRST)
        table[name] = dict(enumerate(values.tolist(), start=1))
    return table


def judged(table, claims):
    """The answers after both looks: rows of undecided claims ran on after five seeds."""
    first = {
        row: {seed: values[seed] for seed in range(1, FIRST + 1)} for row, values in table.items()
    }
    for row in undecided_rows(judge(claims, {"": first})):
        first[row] = table[row]
    return judge(claims, {"": first})


CLAIMS = {
    "higher": [Claim(row, "a") for row in "bcdef"] + [Claim("b", "c")],
    "both": [Claim("b", "a"), Claim("c", "a", 0.01), Claim("d", "a", 0.01), Claim("e", "f")],
    "same": [Claim(row, "a", 0.01) for row in "bcdef"],
}
WRONG = {"reproduced", "contradicted", "differs"}


@pytest.mark.parametrize("papers", [300, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", CLAIMS)
def test_equal_rows_rarely_get_a_wrong_word(kind, papers):
    rng = np.random.default_rng(papers)
    wrong = 0
    for _ in range(papers):
        answers = judged(drawn(dict.fromkeys("abcdef", 0.2), rng), CLAIMS[kind])
        wrong += any(answer.word in WRONG for answer in answers)
    assert wrong / papers < 0.08
    if kind != "same":  # most of those are "equal" before they could err
        assert wrong, "a rule that never errs never says anything"


def test_real_differences_are_found_with_the_right_sign():
    rng = np.random.default_rng(1)
    claims = [Claim("b", "a"), Claim("a", "c"), Claim("d", "a", 0.02), Claim("e", "a", 0.01)]
    levels = dict(a=0.2, b=0.225, c=0.225, d=0.2, e=0.23)
    found = {word: 0 for word in ("reproduced", "contradicted", "equal", "differs")}
    others = 0
    for _ in range(200):
        answers = judged(drawn(levels, rng), claims)
        for answer, word in zip(answers, found):
            found[word] += answer.word == word
            others += answer.word not in (word, NOT_DECIDED)
    assert min(found.values()) > 150, found
    assert others < 8, "of 800 answers"


def test_what_the_first_look_decided_stays():
    rng = np.random.default_rng(2)
    table = drawn(dict(a=0.2, b=0.25, c=0.2), rng)
    claims = [Claim("b", "a"), Claim("c", "a")]
    first = {row: {seed: values[seed] for seed in range(1, 6)} for row, values in table.items()}
    early = judge(claims, {"": first})
    assert early[0].word == "reproduced"
    later = judge(claims, {"": table | {"b": first["b"] | {6: 0.1, 7: 0.1}}})
    assert later[0] == early[0] and later[1].look == 2


@pytest.mark.parametrize(
    "column, text, words",
    [
        ("primary", "<a", "column primary"),
        ("primary", ">z", "which is no row"),
        ("margin", "x", "column margin"),
        ("margin", "-1", "above 0"),
        ("primary", ">a >a:AP50,AP75,APs,APm,APl,AP_alone", "at most 6"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, column, text, words):
    path = tmp_path / "grid.csv"
    path.write_text(f'row,method,{column}\na,atss,\nb,atss,"{text}"\n')
    with pytest.raises(BadInput, match=words):
        read_grid(path)

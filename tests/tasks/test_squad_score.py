"""EM and F1 as the official scripts of SQuAD count them, to the last digit.

The expected figures follow from the scripts' definitions by hand; the fractions are left standing.
"""

import pytest

from distilflax.tasks import squad_score

GOLDS = {
    "tower": ["the Eiffel Tower", "Eiffel Tower"],
    "year": ["in 1889"],
    "none": [],
    "also none": [],
    "article": ["the"],
    "twice": ["cat cat dog"],
}
FOUND = {
    "tower": "Eiffel  tower!",
    "year": "1889",
    "none": "",
    "also none": "Paris",
    "article": "an",
    "twice": "cat dog dog",
}


def test_answers_are_normalised():
    assert squad_score.normalized("The  U.S.A.'s an a theory") == "usas theory"
    assert squad_score.normalized("The «Tower»") == "«tower»"  # ASCII's punctuation alone


def test_answers_are_alike_in_their_letters_and_digits():
    assert squad_score.is_alike("IFN-signature", "IFN signature")
    assert squad_score.is_alike("early-life", "early- life")
    assert squad_score.is_alike("the cat", "cat") and squad_score.is_alike("ICE-CREAM", "ice cream")
    assert not squad_score.is_alike("2-3", "24") and not squad_score.is_alike("«", "»")


def test_version_2_golden():
    figures = squad_score.score(GOLDS, FOUND, version_2=True)
    two_thirds = 2 * 1.0 * 0.5 / 1.5
    twice = 2 * (2 / 3) * (2 / 3) / (2 / 3 + 2 / 3)
    assert figures == {
        "exact": 100.0 * 3 / 6,
        "f1": 100.0 * (1 + two_thirds + 1 + 0 + 1 + twice) / 6,
        "has_answer_exact": 100.0 * 2 / 4,
        "has_answer_f1": 100.0 * (1 + two_thirds + 1 + twice) / 4,
        "no_answer_accuracy": 100.0 * 1 / 2,
    }


def test_version_1_golden():
    golds = {name: GOLDS[name] for name in ("tower", "year", "article")} | {"missing": ["x"]}
    figures = squad_score.score(golds, FOUND, version_2=False)
    # No word is shared by two empty answers, and an answer that is not there is wrong.
    assert figures == {"exact": 100.0 * 2 / 4, "f1": 100.0 * (1 + 2 * 1.0 * 0.5 / 1.5) / 4}


def test_the_best_of_several_gold_answers_counts():
    golds = ["Eiffel Tower", "Tower", "iron"]
    assert squad_score.best_of(golds, "tower", version_2=True) == (1.0, 1.0)
    assert squad_score.best_of([], "tower", version_2=False) == (0.0, 0.0)


def test_questions_without_an_answer_are_counted_by_themselves():
    golds = {"a": ["x"], "b": [], "c": [], "d": []}
    found = {"a": "y", "b": "", "c": "x", "d": ""}
    figures = squad_score.score(golds, found, version_2=True)
    assert figures["no_answer_accuracy"] == pytest.approx(200 / 3)
    assert figures["has_answer_exact"] == 0.0
    assert squad_score.score({"a": ["x"]}, {"a": "x"}, version_2=True)["exact"] == 100.0


def test_a_gold_answer_that_normalises_to_nothing_is_none_where_there_are_others():
    assert squad_score.best_of(["the", "cat"], "", version_2=True) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("golds", "found", "no_answer", "wanted"),
    [
        # Halfway to the next score.
        ({"a": ["x"], "b": []}, {"a": "x", "b": "y"}, {"a": 1.0, "b": 2.0}, 1.5),
        # Equal scores stand or fall together: what is won by one is lost by the other.
        ({"a": ["x"], "b": []}, {"a": "x", "b": "y"}, {"a": 0.0, "b": 0.0}, -1.0),
        # Nothing is lost where nothing was found to be said.
        ({"a": [], "b": ["x"]}, {"a": "", "b": "x"}, {"a": -1.0, "b": 1.0}, 2.0),
        # Of equal F1 the lowest threshold.
        ({"a": ["x"], "b": ["x"]}, {"a": "x", "b": "y"}, {"a": 1.0, "b": 3.0}, 2.0),
        # Halfway to the very next one.
        (
            {"a": ["x"], "b": ["x"], "c": []},
            {"a": "x", "b": "", "c": "y"},
            {"a": 1.0, "b": 2.0, "c": 4.0},
            1.5,
        ),
        # One that is lost at first is won back by two.
        (
            {"a": [], "b": ["x"], "c": ["x"]},
            {"a": "y", "b": "x", "c": "x"},
            {"a": 1.0, "b": 2.0, "c": 3.0},
            4.0,
        ),
        ({"a": ["x"]}, {"a": "x"}, {"a": 1.0}, 2.0),
    ],
)
def test_the_threshold_lies_where_it_should(golds, found, no_answer, wanted):
    assert squad_score.best_threshold(golds, found, no_answer) == wanted


def test_the_threshold_is_the_best_there_is():
    margins = dict(zip(GOLDS, (-3.0, -2.0, 1.0, 0.5, -1.0, 0.5), strict=True))
    threshold = squad_score.best_threshold(GOLDS, FOUND | {"none": "something"}, margins)

    def f1_at(threshold):
        answers = {
            name: text if margins[name] <= threshold else ""
            for name, text in (FOUND | {"none": "something"}).items()
        }
        return squad_score.score(GOLDS, answers, version_2=True)["f1"]

    tried = [f1_at(t) for t in (-4, -2.5, -1.5, 0, 0.7, 2)]
    assert f1_at(threshold) == max(tried)


def test_where_nothing_should_be_answered_nothing_is():
    golds, found = {"a": [], "b": []}, {"a": "x", "b": "y"}
    assert squad_score.best_threshold(golds, found, {"a": 1.0, "b": 2.0}) < 1.0

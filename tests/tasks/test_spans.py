"""Windows over a long text, which tokens touch an answer, and the best spans of all windows."""

import itertools

import numpy as np
import pytest

from distilflax.tasks import spans
from distilflax.tasks.spans import Context, Span, Window

# Six tokens of one character each.
LETTERS = Context("abcdef", np.arange(6), np.arange(6), np.arange(1, 7))


def test_accents_that_stand_apart_stay_with_their_letter(words):
    (found,) = spans.contexts(words, ["cafe\u0301 cat"])
    first, last = spans.tokens_of(found, 0, 5)
    assert spans._characters(found, first, last) == (0, 5)


def test_windows_overlap_and_cover():
    for length, room, stride in ((0, 5, 2), (5, 5, 2), (23, 5, 2), (23, 5, 99), (7, 1, 3)):
        found = spans.windows(length, room, stride)
        assert found[0][0] == 0 and found[-1][1] == length
        for (_, end), (first, _) in itertools.pairwise(found):
            assert first <= end
            assert end - first == min(stride, room // 2)


def test_what_only_stands_beside_an_answer_is_none_of_its_tokens():
    bracketed = Context("(Paris)", np.arange(3), np.array([0, 1, 6]), np.array([1, 6, 7]))
    assert spans.tokens_of(bracketed, 1, 6) == (1, 1)


def test_a_span_that_two_windows_see_has_the_better_score():
    rows = [np.zeros((5, 2), np.float32), np.zeros((5, 2), np.float32)]
    rows[0][4], rows[1][2] = 3.0, 1.0
    windows = [Window(LETTERS, 0, 4, 1), Window(LETTERS, 2, 6, 1)]
    assert spans.best_spans(rows, windows, n_best=1, max_tokens=1) == [Span(3, 4, 6.0)]


@pytest.mark.parametrize(("most", "wanted"), [(3, Span(1, 4, 8.0)), (2, Span(2, 4, 6.0))])
def test_a_span_may_have_just_so_many_tokens(most, wanted):
    row = np.zeros((6, 2), np.float32)
    row[1, 0], row[2, 0], row[3, 1] = 4.0, 2.0, 4.0
    window = Window(LETTERS, 0, 6, 0)
    assert spans.best_spans([row], [window], n_best=6, max_tokens=most)[0] == wanted

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
    (found,) = spans.contexts(words, ["cafe\u0301"])
    assert spans._characters(found, 0, len(found.ids) - 1) == (0, 5)


@pytest.mark.parametrize(
    ("text", "end"),
    [("\uff8c\uff9e.", 2), ("\u1112\u1161\u11ab.", 3), ("\ud558\u11ab.", 2), ("e.", 1), ("e .", 1)],
)
def test_what_a_tokenizer_composes_stays_together(text, end):
    """Of a letter in several characters, as NFKC makes it one, it names the first character."""
    at = np.array([0, len(text) - 1])
    assert spans._characters(Context(text, np.arange(2), at, at + 1), 0, 0) == (0, end)


@pytest.mark.parametrize(
    "context",
    [
        "Anna lives in Paris, a city on a river. The tower is very high!",
        "🎉🎉 Anna\u200d lives\x07 in  «Paris» 🎉, e\u0301te\u0301\u0301 cafe\u0301!",
        "آنا في باريس Anna \u202eParis\u202c نهر",
        "東京の塔 is ﬁne, İstanbul ẞ Ǆ 한국어 cat",
        "a\tb\r\n\x85c\u2028d\u3000e",
        "zzzz" * 60 + " cat",
        # Vowel signs and U+FE0F, which are stripped as accents are, at the end of a word.
        "हिन्दू परिवार में বড়ু",
        "ดี มีอยู่ดี ครับ",
        "I ❤\ufe0f Paris ❤\ufe0f",
    ],
)
def test_every_answer_is_found_at_its_own_characters(words, context):
    """Each word of the text, asked for and pointed at: its tokens give its characters back."""
    (found,) = spans.contexts(words, [context])
    assert found.text == context
    for start, end in _words(context):
        first, last = spans.tokens_of(found, start, end)
        if first > last:  # Control characters alone: the tokenizer leaves nothing.
            continue
        rows = np.full((len(found.ids), 2), -9.0, np.float32)
        rows[first, 0] = rows[last, 1] = 9.0
        window = Window(found, 0, len(found.ids), 0)
        best = spans.best_spans([rows], [window], n_best=3, max_tokens=300)[0]
        bare = context[start:end].strip("\u200d\x07\u202e\u202c")
        at = context.index(bare, start)
        assert (best.start, best.end) == (at, at + len(bare))


def _words(text):
    start = 0
    for part in text.split(" "):
        if part.strip():
            yield start, start + len(part)
        start += len(part) + 1


def test_texts_are_their_own_tokens_alone(words):
    empty, one, again = spans.contexts(words, ["", "cat sat", "cat sat"])
    assert len(empty.ids) == len(empty.starts) == len(empty.ends) == 0
    assert one is again
    assert one.ids.tolist() == words.fast.encode("cat sat").ids[1:-1]


def test_windows_overlap_and_cover():
    for length, room, stride in ((0, 5, 2), (5, 5, 2), (23, 5, 2), (23, 5, 99), (7, 1, 3)):
        found = spans.windows(length, room, stride)
        assert found[0][0] == 0 and found[-1][1] == length
        assert all(last - first <= room for first, last in found)
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


def test_ends_that_all_come_before_the_starts_leave_some_span():
    row = np.zeros((6, 2), np.float32)
    row[4:, 0] = row[:2, 1] = 4.0
    row[3, 1] = row[1, 0] = 1.0
    window = Window(LETTERS, 0, 6, 0)
    assert spans.best_spans([row], [window], n_best=2, max_tokens=2) == [
        Span(1, 2, 5.0),
        Span(0, 1, 4.0),
    ]
    assert not spans.best_spans([row], [Window(LETTERS, 0, 0, 0)], n_best=2, max_tokens=2)


@pytest.mark.parametrize("n_best", [2, 36])
def test_the_best_spans_are_those_of_all_that_may_be(n_best):
    rng = np.random.default_rng(0)
    windows = [Window(LETTERS, 0, 4, 2), Window(LETTERS, 2, 6, 1)]
    # What stands beside a window (a question, padding) is greater than all that is in it.
    rows = [np.full((8, 2), 99.0, np.float32) for _ in windows]
    best = {}
    for row, window in zip(rows, windows, strict=True):
        here = row[window.at : window.at + 4] = rng.normal(size=(4, 2))
        least = np.sort(here, axis=0)[-min(n_best, 4)]
        for i, j in itertools.combinations_with_replacement(range(4), 2):
            if j - i < 3 and here[i, 0] >= least[0] and here[j, 1] >= least[1]:
                where = (window.first + i, window.first + j + 1)
                best[where] = max(best.get(where, -np.inf), here[i, 0] + here[j, 1])
    wanted = sorted(best.items(), key=lambda one: -one[1])[:n_best]
    found = spans.best_spans(rows, windows, n_best=n_best, max_tokens=3)
    assert [(start, end) for start, end, _ in found] == [where for where, _ in wanted]
    np.testing.assert_allclose([one.score for one in found], [x for _, x in wanted], rtol=1e-6)

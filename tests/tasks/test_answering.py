"""Questions about texts: files, windows, spans whose offsets are exact, thresholds."""

import dataclasses
import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.tasks import Answering, spans, squad, texts
from distilflax.tasks.records import Faults
from distilflax.tasks.squad import Answer, Question
from distilflax.tasks.task import NOTHING

CONTEXT = "Anna lives in Paris, a city on a river. The tower is very high!"


def squad_file(write, *questions, name="a.json"):
    """questions: (id, question, answers, context)."""
    paragraphs = [
        {
            "context": context,
            "qas": [{"id": key, "question": question, "answers": answers}],
        }
        for key, question, answers, context in questions
    ]
    return write(name, json.dumps({"data": [{"title": "x", "paragraphs": paragraphs}]}))


def entry(key="q1", question="Where?", start=14, text="Paris", context=CONTEXT):
    return key, question, [{"answer_start": start, "text": text}], context


def read(path, faults=None):
    return Answering().read([path], faults or Faults())


def test_both_versions_and_flat_records_are_read(write):
    path = squad_file(write, entry(), ("q2", "Who?", [], CONTEXT))
    found = read(path)
    assert [q.answers for q in found] == [(Answer(14, "Paris"),), ()]
    assert Answering().learn(found).unanswerable and not Answering().learn(found[:1]).unanswerable
    flat = {
        "id": "q1",
        "question": "Where?",
        "context": CONTEXT,
        "answers": {"text": ["Paris"], "answer_start": [14]},
    }
    for name, content in (
        ("b.jsonl", [flat]),
        ("b.jsonl.gz", gzip.compress(json.dumps(flat).encode())),
        ("b.json", json.dumps([flat])),
        ("c.json", [flat, flat | {"id": "q2"}]),  # a record a line, as datasets' to_json writes
        ("d.json", json.dumps({"version": "1", "data": [flat]})),
    ):
        assert read(write(name, content))[0][1:] == found[0][1:]
    for told, answers in ((True, ()), ("true", ()), ("false", found[0].answers)):
        without = write("d.jsonl", [flat | {"is_impossible": told}])
        assert read(without)[0].answers == answers
    with pytest.raises(UserError, match=r"line 1: `is_impossible` is nan, neither true nor false"):
        read(write("d.jsonl", [flat | {"is_impossible": float("nan")}]))
    faults = Faults(skip=True)
    lame = [{"question": "Where?", "context": CONTEXT}, flat]
    assert len(read(write("e.jsonl", lame), faults)) == faults.count == 1
    plausible = json.loads(path.read_text())
    plausible["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = True
    assert read(write("c.json", json.dumps(plausible)))[0].answers == ()


def mrqa_file(write, *detected, **more):
    """A text with a question for each of `detected`, after the line that MRQA begins with."""
    qas = [
        {"qid": f"q{i}", "id": "x", "question": "Where?", "answers": ["PARIS"]}
        | {"detected_answers": answers, **more}
        for i, answers in enumerate(detected)
    ]
    lines = [{"header": {"dataset": "SQuAD"}}, {"context": CONTEXT, "qas": qas}]
    packed = gzip.compress("\n".join(map(json.dumps, lines)).encode())
    return write("SQuAD.jsonl.gz", packed)


def test_mrqa_has_its_answers_wherever_they_were_detected(write):
    paris = {"text": "paris", "char_spans": [[14, 18]], "token_spans": [[3, 3]]}
    city = {"text": "a", "char_spans": [[21, 21], [31, 31]]}
    found = read(mrqa_file(write, [paris], [paris | {"answer_start": 3}, city]))
    assert [q.id for q in found] == ["q0", "q1"]
    assert found[0].context is found[1].context
    assert found[0].answers == (Answer(14, "Paris"),) and found[0].context == CONTEXT
    assert found[1].answers == (Answer(14, "Paris"), Answer(21, "a"), Answer(31, "a"))
    assert read(mrqa_file(write, [], is_impossible=True))[0].answers == ()
    # What has no answer that was found is not what has no answer.
    for answers, sentence in (
        ([], "question q0: none of its answers was detected"),
        ([paris | {"char_spans": [[14, 19]]}, city], None),  # a comma more, which scores ignore
        ([{"text": "Anna-lives in", "char_spans": [[0, 12]]}], None),  # or a hyphen for a space
        ([{"text": "$", "char_spans": [[0, 3]]}], "point at 'Anna' but the answer is '\\$'"),
        ([paris | {"char_spans": [[13, 17]]}], r"spans 13 to 17 point at ' Pari' but .* 'paris'"),
        ([paris | {"char_spans": [[-6, -2]]}], "point at '' but"),
        ([paris | {"char_spans": []}], "pairs of whole numbers char_spans"),
        ([paris | {"char_spans": [14, 18]}], "pairs of whole numbers char_spans"),
    ):
        path, faults = mrqa_file(write, answers, [paris]), Faults(skip=True)
        assert len(read(path, faults)) + faults.count == 2
        assert faults.count == (sentence is not None)
        if sentence:
            with pytest.raises(UserError, match=sentence):
                read(path)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (entry(start=15), r"question 'q1': answer_start 15 points at 'aris,' but .* 'Paris'"),
        (entry(start=-5), r"answer_start -5 points at '' but"),
        (entry(start=900), r"answer_start 900 points at ''"),
        (entry(question="  "), r"a\.json question 'q1': the question is empty"),
        (entry(context=""), r"the context is empty"),
        (entry(text=" "), r"should be a text and a whole number"),
        (("q1", "Where?", None, CONTEXT), r"'q1' has no `answers`; give a list of them, empty"),
        (
            ("q1", "Where?", {"text": ["Paris", "Anna"], "answer_start": [14]}, CONTEXT),
            r"'q1': `answers` should have as many of `text` as of `answer_start`",
        ),
    ],
)
def test_what_cannot_be_right_names_file_and_question(write, given, sentence):
    path = squad_file(write, given, entry("q2"))
    with pytest.raises(UserError, match=sentence):
        read(path)
    faults = Faults(skip=True)
    assert [q.id for q in read(path, faults)] == ["q2"] and faults.count == 1


def test_an_id_belongs_to_one_question_that_several_may_have_answered(write):
    faults = Faults()
    again = entry(start=CONTEXT.index("The"), text="The")
    found = read(squad_file(write, entry(), ("q1", "Where?", [], CONTEXT), again), faults)
    assert len(found) == 3 and "2 questions were asked again" in faults.notes[0]
    predictions = [{"answer": "The"}] * 3
    # The last answers of an id are those that count, as in the official scripts.
    assert Answering().metrics(predictions, found)["exact"] == 100.0
    twice = squad_file(write, entry(question="who"), entry(question="where"), name="twice.json")
    with pytest.raises(UserError, match=r"twice\.json question 'q1' is also the id .*twice\.json"):
        read(twice)
    # In another file it is another question: as of MLQA, in another language.
    one, two = (squad_file(write, entry(question=q), name=f"{q}.json") for q in ("who", "where"))
    found = Answering().read([one, two], Faults())
    assert [q.id for q in found] == ["q1", f"{two}: q1"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ('{"date": []}', "no list `data`"),
        ('{"data": []}', "has no questions"),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', "no list `qas`"),
    ],
)
def test_files_that_are_no_squad_are_refused(write, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read(write("a.json", content))


def test_a_long_question_is_cut_and_counted(words):
    short = Question("", "q", "where does Anna live?", CONTEXT, ())
    long = short._replace(question="where " * 30)
    features = Answering(max_question=8).encode(words, [short, long], 32)
    assert (features.cut, features.cut_to) == (1, 8)
    assert Answering(max_question=8).encode(words, [long], 18).cut_to == 6  # half of a row


def test_targets_point_at_the_answer_in_each_window_that_holds_it(words):
    question = Question("", "q", "where does Anna live?", CONTEXT, (Answer(14, "Paris"),))
    features = Answering(stride=4).encode(words, [question, question._replace(answers=())], 16)
    seen = 0
    for i, owner in enumerate(features.owner):
        start, end = features.targets["start"][i], features.targets["end"][i]
        if owner == 1 or start == 0:
            assert (start, end) == (0, 0)
            continue
        window = features.details[i]
        pieces = window.context
        first, last = start - window.at + window.first, end - window.at + window.first
        assert CONTEXT[pieces.starts[first] : pieces.ends[last]] == "Paris"
        assert features.ids[i][start] == pieces.ids[first]
        seen += 1
    assert seen and max(map(len, features.ids)) <= 16
    assert features.types[0].tolist().count(1) > 1


def test_windows_are_of_the_tokenizers_own_layout(laid_out):
    words = laid_out("[CLS] $A [SEP] [SEP] $B [SEP]")
    question = Question("", "q", "where?", CONTEXT, (Answer(14, "Paris"),))
    features = Answering(stride=2).encode(words, [question], 16)
    assert len(features.ids) == 2 and len(features.ids[0]) == 16
    assert not any(map(np.any, features.types))
    (asked,) = texts.pieces(words, ["where?"])
    before = [words.cls_id, *asked, words.sep_id, words.sep_id]
    starts = features.targets["start"]
    for row, window, start in zip(features.ids, features.details, starts, strict=True):
        context = window.context.ids[window.first : window.last]
        assert row.tolist() == [*before, *context, words.sep_id] and window.at == len(before)
        first = window.context.starts[window.first + start - window.at]
        assert start == 0 or CONTEXT[first:].startswith("Paris")
    assert starts.any()


def test_an_answer_that_a_window_cuts_is_not_there(words):
    question = Question("", "q", "where?", CONTEXT, (Answer(14, "Paris, a"),))
    features = Answering(stride=2).encode(words, [question], 10)
    held = [(window.first, window.last) for window in features.details]
    assert held == [(0, 5), (3, 8), (6, 11), (9, 14), (12, 17)]
    assert features.targets["start"].tolist() == [0, 4, 0, 0, 0]
    assert features.targets["end"].tolist() == [0, 6, 0, 0, 0]
    assert features.unlearned == features.unsaid == 0
    for most, unsaid in ((2, 1), (3, 0)):  # It has three tokens.
        assert Answering(max_answer=most).encode(words, [question], 64).unsaid == unsaid


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        (CONTEXT, Answer(0, "Anna lives in Paris, a city on a river")),
        ("Anna \x07 lives", Answer(5, "\x07")),
    ],
)
def test_of_an_answer_that_no_row_holds_nothing_is_learned(words, context, answer):
    question = Question("", "q", "where?", context, (answer,))
    features = Answering(stride=2).encode(words, [question, question._replace(answers=())], 10)
    assert features.unlearned == 1
    for name in ("start", "end"):
        target = features.targets[name]
        assert (target[features.owner == 0] == NOTHING).all()
        assert (target[features.owner == 1] == 0).all()


def test_a_share_of_the_windows_without_an_answer_is_learned_from(words):
    answered = Question("", "q", "where does Anna live?", CONTEXT, (Answer(14, "Paris"),))
    asked = [answered, answered._replace(answers=()), answered._replace(answers=None)]
    task = Answering(stride=4, negatives=0.25)
    features = task.encode(words, asked, 16)
    rows = np.arange(len(features.ids))
    kept = [task.trained_on(features, rows, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert kept[0].tolist() == kept[1].tolist() != kept[2].tolist()
    target = features.targets["start"]
    without = np.flatnonzero(target == 0)
    assert len(without) > 4
    for found in kept:
        assert np.isin(np.flatnonzero(target != 0), found).all()  # answers, and what none has said
        assert np.isin(found, without).sum() == np.ceil(0.25 * len(without))
        assert found.tolist() == sorted(set(found))
    everything = Answering(stride=4).trained_on(features, rows, np.random.default_rng(0))
    assert everything.tolist() == rows.tolist()


def answer(words, question, start, end, none=0.0, **options):
    """The prediction where the logits of tokens `start` and `end` of the context are greatest."""
    task = Answering(**options)
    features = task.encode(words, [question], 32)
    logits = []
    for row, window in zip(features.ids, features.details, strict=True):
        found = np.zeros((len(row), 2), np.float32)
        found[0] = none
        for column, token in enumerate((start, end)):
            if window.first <= token < window.last:
                found[window.at + token - window.first, column] = 4.0
        logits.append(found)
    return task, features, logits, task.decode(logits, features, [question])[0]


def test_a_text_of_100_000_words_is_answered_at_the_right_place(words):
    text = "the dog ran " * 33_334 + CONTEXT
    question = Question("", "q", "where?", text)
    (context,) = spans.contexts(words, [text])
    at = text.rindex("Paris")
    first, last = spans.tokens_of(context, at, at + 5)
    *_, found = answer(words, question, first, last, stride=8)
    assert (found["answer"], found["start"], found["end"]) == ("Paris", at, at + 5)
    assert all(text[x["start"] : x["end"]] == x["text"] for x in found["n_best"])
    assert len({(x["start"], x["end"]) for x in found["n_best"]}) == len(found["n_best"])


def test_no_answer_is_given_above_the_threshold(words):
    question = Question("", "q", "where?", CONTEXT, ())
    options = {"unanswerable": True}
    *_, found = answer(words, question, 3, 3, none=5.0, **options)
    assert found["answer"] == "" and found["start"] is None and found["no_answer"] == 2.0
    *_, found = answer(words, question, 3, 3, none=5.0, threshold=2.5, **options)
    assert found["answer"] == "Paris"
    # Where every question has an answer, one is always given.
    *_, found = answer(words, question, 3, 3, none=5.0)
    assert found["answer"] == "Paris"


def test_the_score_of_no_answer_is_the_least_of_all_windows(words):
    question = Question("", "q", "where?", CONTEXT, ())
    task = Answering(stride=2, unanswerable=True)
    features = task.encode(words, [question], 10)
    logits = [np.zeros((len(row), 2), np.float32) for row in features.ids]
    for row, none in zip(logits, ((3, 1), (1, 0), (0, 3), (2, 2), (3, 3)), strict=True):
        row[0], row[4] = none, 4.0
    (found,) = task.decode(logits, features, [question])
    assert found["no_answer"] == 1.0 - 8.0


@pytest.mark.parametrize(("unanswerable", "answers"), [(True, "Paris"), (False, "")])
def test_figures_are_those_of_version_2_where_questions_may_go_unanswered(unanswerable, answers):
    given = (Answer(14, answers),) if answers else ()
    asked = [Question("", "q", "where?", CONTEXT, given)]
    task, found = Answering(unanswerable=unanswerable), [{"answer": answers}]
    about = "has_answer_exact" if answers else "no_answer_accuracy"
    figures = task.metrics(found, asked)
    assert figures["exact"] == figures["f1"] == figures[about] == 100.0
    number, drawn = task.by_index(found, asked)
    assert number == 1 and drawn(np.array([0])) == {"exact": 100.0, "f1": 100.0}


def test_the_threshold_is_tuned_on_the_data(words):
    asked = Question("", "q", "where?", CONTEXT, (Answer(14, "Paris"),))
    task, features, logits, _ = answer(words, asked, 3, 3, none=5.0, unanswerable=True)
    assert task.metrics(task.decode(logits, features, [asked]), [asked])["f1"] == 0.0
    tuned = task.tune(logits, features, [asked])
    assert tuned.metrics(tuned.decode(logits, features, [asked]), [asked])["f1"] == 100.0


def test_padding_teaches_nothing_at_any_temperature():
    given = {"attention_mask": jnp.array([[1, 1, 1, 0]])}
    logits, teacher = jnp.zeros((1, 4, 2)), jnp.arange(8.0).reshape(1, 4, 2)
    for temperature in (0.1, 1.0, 4.0):
        whole = Answering().distil(logits, teacher, given, temperature)
        short = {"attention_mask": jnp.ones((1, 3), int)}
        alone = Answering().distil(logits[:, :3], teacher[:, :3], short, temperature)
        np.testing.assert_allclose(whole.sum, alone.sum, rtol=1e-5)


def test_the_loss_is_the_mean_of_both_ends_and_padding_is_no_place():
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 0]])
    given = {"start": jnp.array([1, -100]), "end": jnp.array([2, -100]), "attention_mask": mask}
    logits = jnp.zeros((2, 4, 2)).at[:, 3].set(50.0)
    total, count = Answering().loss(logits, given)
    np.testing.assert_allclose((total, count), (np.log(3), 1), rtol=1e-6)
    total, count = Answering().distil(logits, logits.at[:, 3].set(-7.0), given, 2.0)
    np.testing.assert_allclose((total, count), (0.0, 2), atol=1e-6)


def test_a_text_of_nothing_but_control_characters_is_no_crash(words):
    question = Question("", "q", "where?", "\x07\x08", None)
    for unanswerable in (False, True):  # Sure in both, for there is nothing else to say.
        *_, found = answer(words, question, 0, 0, unanswerable=unanswerable)
        assert (found["answer"], found["score"]) == ("", 1.0)


def test_questions_are_in_one_file(write, tmp_path):
    write("a", "x")
    write("b", "x")
    with pytest.raises(UserError, match=r"one file each; put a comma for the \+"):
        read(tmp_path / "a+b")


def test_the_readers_place_is_the_file(write):
    assert next(squad.read(squad_file(write, entry()), Faults())).place.endswith("question 'q1'")


def test_all_that_answers_depend_on_is_saved_with_a_model():
    fields = {field.name for field in dataclasses.fields(Answering)}
    assert fields - Answering().own().keys() == {"negatives"}  # which questions are learned

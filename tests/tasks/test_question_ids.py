"""What published files call the id of a question, and what is said of one that has none."""

import json

import pytest

from distilflax.errors import UserError
from distilflax.tasks import Answering
from distilflax.tasks.records import Faults
from distilflax.tasks.squad import Answer

CONTEXT = "Anna lives in Paris, a city on a river."
KLUE = {
    "guid": "klue-1",
    "question": "Where?",
    "question_type": 1,
    "is_impossible": False,
    "answers": [{"text": "Paris", "answer_start": 14}],
}


def read(path):
    return Answering().read([path], Faults())


@pytest.fixture
def nested(write):
    """nested(questions) -> a file of SQuAD's format with one text that has these."""

    def make(*questions):
        paragraph = {"context": CONTEXT, "qas": questions}
        return write("a.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))

    return make


def test_an_id_may_be_called_guid(write, nested):
    for path in (nested(KLUE), write("b.jsonl", [KLUE | {"context": CONTEXT}])):
        (found,) = read(path)
        assert (found.id, found.answers) == ("klue-1", (Answer(14, "Paris"),))
    # Beside an id it is something else.
    assert [question.id for question in read(nested(KLUE | {"id": "q1"}))] == ["q1"]


def test_a_question_without_an_id_says_what_there_is(nested):
    number = {"no" if name == "guid" else name: value for name, value in KLUE.items()}
    with pytest.raises(UserError, match=r"lacks id or question \(there is: no, question, quest"):
        read(nested(number))
    with pytest.raises(UserError, match="a question is not an object but 'Where"):
        read(nested("Where?"))

"""Words and their tags: files, pieces, windows, decoding; no word is ever without a tag."""

import gzip
import json

import datasets
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax.errors import UserError
from distilflax.models import TaskHead
from distilflax.tasks import Tagging, named_files, sentences, tagging
from distilflax.tasks.records import Faults
from distilflax.tasks.sentences import Sentence
from distilflax.tasks.tagging import word_windows

CONLL = "-DOCSTART- O\n\nAnna B-per\nlives O\n\nParis\tB-loc\n  \nParis B-loc\n! O"


def read(path, **options):
    return Tagging(**options).read([path], Faults())


def test_conll_and_json_lines_are_read(write):
    found = read(write("a.conll", CONLL))
    assert [(s.words, s.tags) for s in found] == [
        (("Anna", "lives"), ("B-per", "O")),
        (("Paris",), ("B-loc",)),
        (("Paris", "!"), ("B-loc", "O")),
    ]
    assert found[1].place.endswith("a.conll line 6")
    columns = "Anna NNP I-NP I-per\nlives VBZ I-VP O\n"
    assert read(write("b.txt", columns), column=1)[0].tags == ("NNP", "VBZ")
    record = {"w": ["Anna", "\u3000"], "t": ["X", "Y"]}
    assert read(write("c.jsonl", [record]), words="w", tags="t")[0].words == ("Anna", "\u3000")


def test_of_conll_u_syntactic_words_are_read_and_nothing_else(write):
    content = (
        "# sent_id = 1\n# text = ¡Vámonos\n1\t¡\t¡\tPUNCT\t_\n2-3\tVámonos\t_\t_\t_\n"
        "2\tVamos\tir\tVERB\tVIP\n3\tnos\tyo\tPRON\tPP\n3.1\tya\tya\tADV\t_\n\n"
        "# sent_id = 2\n1\t#\t#\tSYM\tFc\n"
    )
    found = read(write("es.conllu", content))
    assert [(s.words, s.tags) for s in found] == [
        (("¡", "Vamos", "nos"), ("PUNCT", "VERB", "PRON")),
        (("#",), ("SYM",)),
    ]
    assert found[0].place.endswith("line 3")
    assert read(write("es.conllu", content), column=4)[1].tags == ("Fc",)
    backwards = write("es.conllu", "% x\n1\tA\ta\tDET\tD\n% x\n")
    assert read(backwards, column=-2, comment="%")[0].tags == ("DET",)
    assert read(backwards, column=-3, comment="%")[0].tags == ("a",)
    with pytest.raises(UserError, match="has 1 columns"):
        read(write("b.conllu", "1\n"))


def test_columns_are_where_the_options_say_they_are(write):
    germeval = "#\tsource\n1\tBerlin\tB-LOC\tO\n2\tist\tO\tO\n3\tda\tO\tO\n\n"
    path, faults = write("a.tsv", germeval), Faults()
    found = Tagging(word_column=1, column=2, comment="#").read([path], faults)
    assert [(s.words, s.tags) for s in found] == [(("Berlin", "ist", "da"), ("B-LOC", "O", "O"))]
    assert not faults.notes
    Tagging(column=2, comment="#").read([path], faults)
    assert "most sentences have numbers" in faults.notes[0]
    path, faults = write("c.conll", "0\tEU\tO\n1\tof\tO\n2\tall\tO\n"), Faults()
    Tagging().read([path], faults)
    assert "most sentences have numbers" in faults.notes[0]
    path, faults = write("d.conll", "en:EU\tO\nen:of\tO\n\nen:all\tO\n"), Faults()
    Tagging().read([path], faults)
    assert "Every word of" in faults.notes[0] and "'en:'" in faults.notes[0]
    with pytest.raises(UserError, match="line 2 has an empty word or tag"):
        read(write("b.tsv", "EU\tB-ORG\tX\nEU\t\tX\n"), column=1)


def test_json_may_be_compressed_and_untagged_text_be_plain(write):
    record = json.dumps({"tokens": ["Anna", "lives"], "tags": ["B-per", "O"]})
    assert read(write("a.jsonl.gz", gzip.compress(record.encode())))[0].words == ("Anna", "lives")
    text = write("more.txt", "Anna lives in Paris.\n\nA dog ran!\n")
    found = Tagging().read([text], Faults(), labelled=False)
    assert [s.words for s in found] == [
        ("Anna", "lives", "in", "Paris", "."),
        ("A", "dog", "ran", "!"),
    ]
    marked = write("docs.conll", "-DOCSTART-\nAnna B-per\nlives O\n-DOCSTART-\nParis B-loc\n")
    found = Tagging().read([marked], Faults(), labelled=False)
    assert [s.words for s in found] == [("Anna", "lives"), ("Paris",)]
    columns = write("more.conll", "Anna B-per\nlives O\n")
    assert Tagging().read([columns], Faults(), labelled=False)[0].words == ("Anna", "lives")


def test_of_records_the_words_may_be_read_alone(tmp_path):
    table = pa.table({"tokens": [["Anna", "lives"]], "tags": [["B-per", "O"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        faults = Faults()
        (found,) = Tagging().read([tmp_path / name], faults, labelled=False)
        assert (found.words, found.tags, faults.notes) == (("Anna", "lives"), None, [])


def test_a_tag_that_is_none_is_a_fault_and_other_letters_are_tags(write):
    found = read(write("a.conll", "Anna U-per\nlives O\n\nAnna B-per\nLee L-per\n! BORG\n"))
    task = Tagging().learn(found)
    assert (task.scheme, task.metric) == ("bioes", "f1") and "BORG" not in task.labels
    assert task.learned == "4 tags, which are taken for spans in BIOES"
    faults = Faults(skip=True)
    kept = task.split(found, faults, training=True)
    assert len(kept) == 1 and "has the tag 'BORG', which is neither O" in faults.first
    predictions = [{"tags": list(kept[0].tags)}]
    assert task.metrics(predictions, kept)["f1"] == 1.0
    number, figures = task.by_index(predictions, kept)
    assert figures(np.arange(number))["f1"] == 1.0
    bare = [Sentence("", ("a", "b", "c"), ("B", "I", "O"))]
    task = Tagging().learn(bare)
    assert task.scheme == "bio" and task.metrics([{"tags": ["B", "O", "O"]}], bare)["f1"] == 0.0


def test_numbers_are_the_tags_that_are_named(write):
    file = write("a.jsonl", [{"tokens": ["Anna", "lives"], "tags": [1, 0]}])
    assert read(file, tag_names=("O", "B-per"))[0].tags == ("B-per", "O")
    named = Tagging(tag_names=("O", "B-per", "I-per"))
    task = named.learn(named.read([file], Faults()))
    assert task.labels == ("O", "B-per", "I-per")  # one of them only development data may have
    datasets.Dataset.from_list([{"tokens": ["Anna"], "tags": ["O"]}]).save_to_disk(
        file.parent / "d"
    )
    (shard,) = named_files.find(file.parent, "d")
    assert read(shard)[0].words == ("Anna",)
    with pytest.raises(UserError, match=r"line 1: 'tags' holds numbers; .*options\.tag_names"):
        read(file)
    with pytest.raises(UserError, match=r"'tags' is 1, and config\.options\.tag_names names 1"):
        read(file, tag_names=("O",))
    digits = write("b.jsonl", [{"tokens": ["Anna", "lives", "here"], "tags": ["1", "0", "O"]}])
    assert read(digits, tag_names=("O", "B-per"))[0].tags == ("B-per", "O", "O")
    for wrong in ("2", "per"):
        path = write("c.jsonl", [{"tokens": ["Anna"], "tags": [wrong]}])
        with pytest.raises(
            UserError, match=r"line 1: 'tags' is '?\w+'?, and config\.options\.tag_n"
        ):
            read(path, tag_names=("O", "B-per"))


def test_comments_are_no_words_where_they_are_named(write):
    content = "# id 7\tdomain=en\nAnna _ _ B-PER\n# _ _ O\n"
    found = read(write("a.conll", content), comment="# id")
    assert [(s.words, s.tags) for s in found] == [(("Anna", "#"), ("B-PER", "O"))]


# As published: GermEval 2014, MultiCoNER, KLUE-NER (of which words are characters), UNER.
GERMEVAL = (
    "#\thttp://de.wikipedia.org/wiki/A [2009]\n1\tAnna\tB-PER\tO\n2\tlebt\tO\tO\n\n"
    "#\thttp://de.wikipedia.org/wiki/B [2009]\n1\tParis\tB-LOC\tO\n2\t!\tO\tO\n"
)
MULTICONER = "# id 7\tdomain=train\nAnna _ _ B-PER\n# _ _ O\n\n# id 8\tdomain=train\nran _ _ O\n"
KLUE = "## klue-7\tA<b:PS>\nA\tB-PS\n#\tO\n\n## klue-8\tgo\ng\tO\n \tO\n"
UNER = "# sent_id = 1\n# text = Anna\n1\tAnna\tB-PER\t-\n\n# sent_id = 2\n1\tran\tO\t-\n"


@pytest.mark.parametrize(
    ("content", "comment", "options", "words"),
    [
        (GERMEVAL, "#", {"word_column": 1, "column": 2}, [("Anna", "lebt"), ("Paris", "!")]),
        (GERMEVAL, "#", {"word_column": 1}, [("Anna", "lebt"), ("Paris", "!")]),
        (MULTICONER, "# id", {}, [("Anna", "#"), ("ran",)]),
        (KLUE, "## ", {}, [("A", "#"), ("g", " ")]),
        (UNER, "# ", {"word_column": 1, "column": 2}, [("Anna",), ("ran",)]),
    ],
)
def test_comments_that_open_sentences_are_told_of(write, content, comment, options, words):
    path, faults = write("a.tsv", content), Faults()
    found = Tagging(comment=comment, **options).read([path], faults)
    assert [s.words for s in found] == words and not faults.notes
    task, faults = Tagging(**options), Faults(skip=True)
    found = task.read([path], faults)
    assert faults.notes[0].startswith(f"Most sentences of {path} begin with a line like '#")
    assert "as config.options.comment" in faults.notes[0]
    with pytest.raises(UserError, match=r"if that line is a comment, .*options\.comment; oth"):
        task.learn(task.read([path], Faults())).split(found, Faults(), training=True)


def test_a_comment_that_stands_alone_or_that_plain_tags_meet_is_told_of(write):
    jnlpba = "###MEDLINE:95\n\nIL-2 B-DNA\ngene I-DNA\n"
    with pytest.raises(UserError, match=r"'###MEDLINE:95'\), .*if that line is a comm"):
        read(write("a.txt", jnlpba))
    found = read(write("b.txt", "Anna NOUN\nran VERB\n"))
    other = read(write("c.txt", "# new\nAnna NOUN\n"))
    with pytest.raises(UserError, match=r"the tag 'new', .*comment; otherwise choose from NOUN"):
        Tagging().learn(found).split(other, Faults(), training=True)
    with pytest.raises(UserError, match=r"empty word or tag .*; if that line is a comment"):
        read(write("d.txt", "#\t\tO\n"), word_column=1)


def test_hashes_may_be_words(write):
    tweets = "#joy\tO\nin\tO\nParis\tB-LOC\n\n#\tO\n1\tO\n\n#sad\tO\n"
    for content in (tweets, tweets.replace("\t", " ")):
        path, faults = write("a.txt", content), Faults()
        task = Tagging()
        found = task.read([path], faults)
        assert [s.words[0] for s in found] == ["#joy", "#", "#sad"] and not faults.notes
        assert len(task.learn(found).split(found, faults, training=True)) == 3


def test_tags_that_stand_before_words_are_noted(write):
    path, faults = write("a.bio", "O\tany\nB-GENRE\tromantic\nI-GENRE\tones\n"), Faults()
    Tagging().read([path], faults)
    assert "column 0 of" in faults.notes[0] and "config.options.word_column" in faults.notes[0]
    faults = Faults()
    (found,) = Tagging(word_column=1, column=0).read([path], faults)
    assert found.tags == ("O", "B-GENRE", "I-GENRE") and not faults.notes
    # Words may look like tags one by one.
    path = write("b.bio", "O\tO\nI-95\tB-road\nis\tO\n")
    Tagging().read([path], faults)
    assert not faults.notes


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.conll", "Anna B-per\nlives\n", r"a\.conll line 2 has 1 columns \('lives'\).*no tag"),
        ("a.conll", "\n\n", r"has no sentence"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', r"line 1 has 1 tags for 2 words"),
        ("a.jsonl", '{"tokens": "a", "tags": ["O"]}\n', r"should be lists of texts"),
        ("a.jsonl", '{"tokens": ["a"]}\n', r"no column 'tags'.*choose from tokens"),
        ("a.jsonl", '{"tokens": [], "tags": []}\n', r"line 1 has no words"),
        ("a.jsonl", '{"tokens": ["a"], "tags": null}\n', r"should be lists of texts"),
    ],
)
def test_tags_that_do_not_match_words_are_refused(write, name, content, sentence):
    with pytest.raises(UserError, match=sentence):
        read(write(name, content))


def test_an_iob_error_names_the_word(write):
    found = read(write("a.conll", "Anna B-per\nof O\nParis I-loc\n"))
    task = Tagging().learn(found)
    with pytest.raises(UserError, match=r"line 1: word 3 \('Paris'\).*'I-loc' after 'O'.*iob1"):
        task.split(found, Faults(), training=True)
    types = read(write("b.conll", "Anna person-actor\nLee person-actor\nran O\n"))
    task = Tagging(scheme="io").learn(types)
    assert task.labels == ("O", "B-person-actor", "I-person-actor") and task.metric == "f1"
    (kept,) = task.split(types, Faults(), training=True)
    assert kept.tags == ("B-person-actor", "I-person-actor", "O")
    assert task.split([kept], Faults(), training=False) == [kept]  # by a second model
    # A model that knows no such type is told of the tag, whichever model came first.
    other = Tagging(scheme="io").learn(read(write("c.conll", "Anna I-LOC\nran O\n")))
    for tags in (kept.tags, types[0].tags):
        with pytest.raises(UserError, match="has the tag 'B-person-actor', which the model"):
            other.split([kept._replace(tags=tags)], Faults(), training=False)
    marked = [kept._replace(tags=("I-LOC", "I-LOC", "O"))]  # a type may look like a tag
    assert other.split(marked, Faults(), training=False)[0].tags == ("B-I-LOC", "I-I-LOC", "O")
    task = Tagging(scheme="iob1").learn(found)
    assert task.split(found, Faults(), training=True)[0].tags == ("B-per", "O", "B-loc")
    assert "B-loc" in task.labels


def test_a_tag_that_many_have_is_compared_with_all_tags_once(monkeypatch):
    task, asked, faults = Tagging(labels=("O", "B-a"), scheme="bio"), [], Faults(skip=True)
    monkeypatch.setattr(tagging, "choose_from", lambda name, _: asked.append(name) or "")
    assert not task.split([Sentence("p", ("Anna",), ("B-b",))] * 3, faults, training=True)
    assert faults.count == 3 and asked == ["B-b"]
    endless = Sentence("p", ("Anna",), ("B-" + "x" * 1_000_000,))
    task.split([endless], long := Faults(skip=True), training=True)
    assert len(long.first) < 1000


def test_the_brackets_of_conll_2012_are_spans(write):
    content = "#begin document (x)\nx 0 0 Anna NNP (PER*\nx 0 1 Lee NNP *)\nx 0 2 ran VBD *\n\n"
    found = read(write("a.conll", content), word_column=3, comment="#")
    task = Tagging().learn(found)
    assert task.labels == ("O", "B-PER", "I-PER") and task.scheme == "brackets"
    (kept,) = task.split(found, Faults(), training=True)
    assert kept.tags == ("B-PER", "I-PER", "O")
    assert task.split([kept], Faults(), training=False) == [kept]
    unseen = [kept._replace(tags=("B-LOC", "O", "O"))]
    with pytest.raises(UserError, match="has the tag 'B-LOC', which the model does not"):
        task.split(unseen, Faults(), training=False)
    broken = [found[0]._replace(tags=("(PER*", "(LOC)", "*)"))]
    with pytest.raises(UserError, match=r"line 2: of the tags \(PER\* \(LOC\) \*\) some are no"):
        task.split(broken, Faults(), training=True)


def test_the_first_piece_of_a_word_has_its_tag(words):
    given = [Sentence("", ("Anna", "catdog", "\u200d\x07", "mat"), ("B-x", "I-x", "O", "O"))]
    task = Tagging().learn(given)
    features = task.encode(words, given, 16)
    (ids,), (target,) = features.ids, features.targets["tag"]
    first = features.targets["first"][0]
    assert first.sum() == 4
    assert [task.labels[i] for i in target[target >= 0]] == ["B-x", "I-x", "O", "O"]
    assert ((target >= 0) == (first > 0)).all()
    at = features.details[0].at
    # A word that vanishes in the tokenizer is unknown, not lost.
    assert ids[at[2]] == words.unk_id
    assert words.fast.id_to_token(int(ids[at[1] + 1])).startswith("##")


def test_windows_answer_for_every_word_once():
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(1, 6, rng.integers(1, 60)).tolist()
        windows = word_windows(lengths, 8)
        answered = [i for _, _, first, last in windows for i in range(first, last)]
        assert answered == list(range(len(lengths)))
        for begin, end, first, last in windows:
            assert begin <= first < last <= end
            assert sum(lengths[begin:end]) <= 8
    assert word_windows([], 8) == []


def test_a_sentence_of_any_length_has_all_its_tags(words):
    given = [
        Sentence("", ("cat", "mat") * 2000, ("O", "B-x") * 2000),
        Sentence("", ("dog",), ("O",)),
    ]
    task = Tagging().learn(given)
    features = task.encode(words, given, 16)
    number = {label: i for i, label in enumerate(task.labels)}
    logits = []
    for row, target in zip(features.ids, features.targets["tag"], strict=True):
        one_hot = np.zeros((len(row), 2), np.float32)
        one_hot[np.arange(len(row)), np.where(target >= 0, target, 0)] = 5.0
        logits.append(one_hot)
    assert number.keys() == {"O", "B-x"}
    found = task.decode(logits, features, given)
    assert [p["tags"] for p in found] == [list(s.tags) for s in given]
    assert task.metrics(found, given) == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}


def test_constrained_decoding_gives_no_illegal_tag(words):
    given = [Sentence("", ("cat", "mat"), None)]
    task = Tagging(labels=("O", "B-x", "I-x"), scheme="bio", constrained=True)
    features = task.encode(words, given, 16)
    logits = [np.zeros((len(features.ids[0]), 3), np.float32)]
    logits[0][features.details[0].at] = [[1.0, 0.5, 3.0], [0.0, 0.0, 3.0]]
    assert task.decode(logits, features, given)[0]["tags"] == ["B-x", "I-x"]


def test_a_head_with_i_and_no_b_speaks_iob1(words):
    head = TaskHead("token", ("O", "B-loc", "I-loc", "I-per"))
    task = Tagging.restore(head, {"constrained": True}, "config.json")
    assert task.scheme == "iob1"
    given = Sentence("line 1", ("cat", "mat", "dog"), ("B-per", "O", "B-loc"))
    assert task.split([given], Faults(), training=False) == [given]
    older = given._replace(tags=("I-per", "O", "I-loc"))
    assert task.split([older], Faults(), training=False) == [given]
    with pytest.raises(UserError, match="has the tag 'B-per', which the training data does not"):
        task.split([given], Faults(), training=True)
    other = given._replace(tags=("O", "O", "B-time"))
    with pytest.raises(UserError, match="has the tag 'B-time', which the model does not have"):
        task.split([other], Faults(), training=False)

    features = task.encode(words, [given], 16)
    logits = [np.zeros((len(features.ids[0]), 4), np.float32)]
    logits[0][features.details[0].at, [3, 0, 2]] = 5.0
    found = task.decode(logits, features, [given])
    assert found[0]["tags"] == ["I-per", "O", "I-loc"]
    assert [one["label"] for one in found[0]["entities"]] == ["per", "loc"]
    figures = {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
    assert task.metrics(found, [given]) == figures
    number, by_index = task.by_index(found, [given])
    assert by_index(np.arange(number)) == pytest.approx(figures)


def test_the_loss_counts_first_pieces_alone():
    task = Tagging(labels=("O", "B-x"))
    logits = jnp.zeros((2, 3, 2))
    target = jnp.array([[-100, 0, -100], [-100, 1, 0]])
    total, count = task.loss(logits, {"tag": target})
    np.testing.assert_allclose((total, count), (3 * np.log(2), 3), rtol=1e-6)
    first = (target >= 0).astype(jnp.int32)
    assert task.distil(logits, logits, {"first": first}, 2.0).count == 3


def test_plain_tags_are_classes():
    given = [Sentence("", ("a", "b"), ("DET", "NOUN"))]
    task = Tagging().learn(given)
    assert (task.scheme, task.metric) == ("plain", "accuracy")
    assert task.metrics([{"tags": ["DET", "DET"]}], given)["accuracy"] == 0.5


def test_words_of_a_text_keep_their_places():
    text = "«Hi», @anna: it's 5€… ok 🎉नमस्ते! #x"
    sentence = sentences.of_text(text)
    assert [text[start:end] for start, end in sentence.offsets] == list(sentence.words)
    assert "".join(sentence.words) == "".join(text.split())
    assert {"@anna", "it", "'s", "#x", "«", "Hi", "🎉नमस्ते"} <= set(sentence.words)
    assert sentences.of_text("我住in北京。").words == ("我", "住", "in", "北", "京", "。")
    assert sentences.of_text("Anna's dog, 's").words == ("Anna", "'s", "dog", ",", "'", "s")
    assert sentences.of_text("  ").words == ()

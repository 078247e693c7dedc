"""Tagged sentences that stand as text: side by side, in the cells of a table, in brackets."""

import pytest

from distilflax.errors import UserError
from distilflax.tasks import Classification, Tagging, named_files
from distilflax.tasks.records import Faults


def read(path, **options):
    return Tagging(**options).read([path], Faults())


def test_words_and_tags_may_stand_in_files_side_by_side(write, tmp_path):
    write("seq.in", "fly to  Pa\u00a0ris\nwho\n")
    write("seq.out", "O O B-city\nO O\n")
    write("label", "flight\nperson\n")
    (path,) = named_files.find(tmp_path, "seq.in+seq.out+label")
    task, faults = Tagging(header=("tokens", "tags", "intent")), Faults(skip=True)
    (found,) = task.read([path], faults)
    assert (found.words, found.tags) == (("fly", "to", "Pa\u00a0ris"), ("O", "O", "B-city"))
    assert faults.count == 1 and "line 2 has 2 tags for 1 words" in faults.first
    assert [s.tags for s in task.read([path], Faults(), labelled=False)] == [None, None]
    intents = Classification(header=task.header, text="tokens", label="intent")
    assert [e.label for e in intents.read([path], Faults())] == ["flight", "person"]
    with pytest.raises(UserError, match=r"name its columns, .* as config\.options\.header"):
        read(path)
    write("seq.in", "fly\n\n")
    write("seq.out", "O\nO\n")
    (path,) = named_files.find(tmp_path, "seq.in+seq.out")
    with pytest.raises(UserError, match=r"seq.in\+seq.out line 2 has no words"):
        read(path, header=("tokens", "tags"))
    write("seq.in", "Anna ran\n")
    write("seq.out", "1 0\n")
    (numbered,) = read(path, header=("tokens", "tags"), tag_names=("O", "B-per"))
    assert (numbered.tags, numbered.classes) == (("B-per", "O"), ("O", "B-per"))
    with pytest.raises(UserError, match=r"line 1: 'tags' is 1, and config\.options\.tag_names"):
        read(path, header=("tokens", "tags"), tag_names=("O",))
    write("seq.out", "1 " + "1" * 5000 + "\n")
    with pytest.raises(UserError, match=r"line 1: 'tags' is '1111"):
        read(path, header=("tokens", "tags"), tag_names=("O", "B-per"))


def test_words_and_tags_may_stand_in_two_cells_of_a_table(write):
    content = 'id,tokens,slots,intent\n0,"fly to Paris",O O B-city,flight\n1,who,O,person\n'
    options = {"words": "tokens", "tags": "slots"}
    for name, text in (("a.csv", content), ("a.tsv", content.replace('"', "").replace(",", "\t"))):
        found = read(write(name, text), **options)
        assert [(s.words, s.tags) for s in found] == [
            (("fly", "to", "Paris"), ("O", "O", "B-city")),
            (("who",), ("O",)),
        ]
        assert found[1].place.endswith("line 3")
        # One of the two names is enough to know it for a table, and what it lacks is told.
        with pytest.raises(
            UserError, match=r"no column 'tags' \(config\.options\.tags\); choose fr"
        ):
            read(write(name, text))
    untagged = write("b.csv", "id,tokens\n0,fly home\n")
    (found,) = Tagging().read([untagged], Faults(), labelled=False)
    assert (found.words, found.tags) == (("fly", "home"), None)
    headless = write("c.csv", "0,fly home,O O\n")
    assert read(headless, header=("", "tokens", "tags"))[0].tags == ("O", "O")
    path = write("d.txt", "0;fly home;O O\n")
    assert read(path, header=("", "tokens", "tags"), delimiter=";")[0].words == ("fly", "home")


def test_of_a_table_the_columns_that_are_there_are_told(write):
    kaggle = "Sentence #,Sentence,POS,Tag\nSentence: 1,fly home,\"['VB', 'NN']\",\"['O', 'O']\"\n"
    for content in (kaggle, "text,labels\nfly home,O O\n", "word,tag\nfly,O\n\nhome,O\n"):
        path = write("a.csv", content)
        names = content.partition("\n")[0].replace(",", ", ")
        with pytest.raises(UserError, match=rf"column 'tokens' \(.*words\); choose from {names}"):
            read(path)
    # Columns of CoNLL's may be called so.
    for content, options in (
        ("1,000\tO\nmen\tO\n", {}),
        ("1,000 O\nmen O\n", {"column": 1}),
        ("# a, b\n1 O\nmen O\n", {"comment": "# "}),
    ):
        (found,) = read(write("b.csv", content), **options)
        assert len(found.words) == 2


def test_columns_of_words_may_have_a_first_line_of_names(write):
    path = write("a.tsv", "tokens\ttags\nfly\tO\nhome\tB-place\n")
    # Of one block alone nobody knows whether it is one sentence.
    with pytest.raises(UserError, match=r"a\.tsv is of one word.*options\.sentence_column\.$"):
        read(path)
    (found,) = read(path, comment="tokens\t")
    assert found.words == ("fly", "home")
    parted = write("b.tsv", "tokens\ttags\nfly\tO\n\nhome\tB-place\n")
    with pytest.raises(UserError, match=r"sentence_column, or part sentences by blank lines\.$"):
        read(parted)


def test_texts_of_one_word_are_noted_where_no_tags_are_asked_for(write):
    path, faults = write("a.csv", "id,tokens\n0,fly\n1,home\n"), Faults()
    found = Tagging().read([path], faults, labelled=False)
    assert [s.words for s in found] == [("fly",), ("home",)]
    assert f"Every sentence of {path} is of one word" in faults.notes[0]


# As in Kaggle's ner_dataset.csv.
WORDS = (
    "Sentence #,Word,POS,Tag\nSentence: 1,fly,VB,O\n,to,IN,O\n,New York,NNP,B-place\n"
    'Sentence: 2,"1,000",CD,O\n,"""",``,O\nSentence: 3,who,WP,O\n'
)
PARTED = [("fly", "to", "New York"), ("1,000", '"'), ("who",)]


def test_a_column_may_part_the_sentences_of_words_in_rows(write):
    options = {"words": "Word", "tags": "Tag", "sentence_column": "Sentence #"}
    everywhere = WORDS.replace("\n,", "\nSentence: 1,").replace('1,"""', '2,"""')
    for name, content, given in (
        ("a.csv", WORDS, {}),
        ("b.csv", everywhere, {}),
        ("c.txt", WORDS.replace(",", ";").replace("1;000", "1,000"), {"delimiter": ";"}),
        ("d.csv", WORDS.partition("\n")[2], {"header": ("Sentence #", "Word", "", "Tag")}),
        ("e.csv", WORDS, {"comment": "Sentence #"}),  # the names are none
    ):
        path = write(name, content)
        found = read(path, **options, **given)
        assert [s.words for s in found] == PARTED
        assert found[0].tags == ("O", "O", "B-place") and "line" in found[1].place
        task = Tagging(**options, **given)
        assert [s.tags for s in task.read([path], Faults(), labelled=False)] == [None] * 3
    by_number = write("f.csv", "id,tokens,tags\n7,fly,0\n7,home,1\n8,who,0\n")
    found = read(by_number, sentence_column="id", tag_names=("O", "B-place"))
    assert found[0].tags == ("O", "B-place") and found[0].classes == ("O", "B-place")
    path, faults = write("g.csv", "id,tokens,tags\n7,Yes,O\n8,No,O\n"), Faults()
    assert len(Tagging(sentence_column="id").read([path], faults)) == 2
    assert "g.csv is of one word" in faults.notes[0] and "column than 'id' as" in faults.notes[0]
    with pytest.raises(
        UserError, match=r"column 'Id' \(config\.options\.sentence_column\); choose from"
    ):
        read(write("a.csv", WORDS), **options | {"sentence_column": "Id"})


def test_a_faulty_row_costs_the_sentences_that_it_may_have_been_of(write):
    options = {"words": "Word", "tags": "Tag", "sentence_column": "Sentence #"}
    wide = WORDS.replace(",to,IN", ",to,,IN")
    with pytest.raises(UserError, match=r"a\.csv line 3 has 5 columns but the first line names 4"):
        read(write("a.csv", wide), **options)
    for content, kept in (
        (wide, PARTED[1:]),
        (
            WORDS.replace("Sentence: 2", "Sentence: 2,"),
            PARTED[2:],
        ),  # its rest might be of the first
        (WORDS.replace("``,O", "``,O,"), PARTED[:1]),
    ):
        faults = Faults(skip=True)
        found = Tagging(**options).read([write("a.csv", content)], faults)
        assert [s.words for s in found] == kept and faults.count == 1
        assert "sentences of" in faults.notes[0] and "were left out" in faults.notes[0]
    empty, faults = WORDS.replace("NNP,B-place", "NNP,"), Faults(skip=True)
    assert len(Tagging(**options).read([write("a.csv", empty)], faults)) == 2
    assert "line 4 has nothing in 'Tag'; mend it" in faults.first and not faults.notes


def test_blank_lines_may_part_the_sentences_of_words_in_rows(write):
    content = '\nWord,Tag\nfly,O\n"1,000",B-number\n\n,\nwho,O\n\n'
    options = {"words": "Word", "tags": "Tag"}
    for name, text, given in (
        ("a.csv", content, {}),
        ("b.csv", content.replace("Word,Tag\n", ""), {"header": ("Word", "Tag")}),
        ("c.csv", content, {"delimiter": ",", "comment": "Word"}),
        ("d.tsv", content.replace(",", "\t").replace('"1\t000"', "1,000"), {}),
    ):
        path, faults = write(name, text), Faults()
        found = Tagging(**options, **given).read([path], faults)
        assert [s.words for s in found] == [("fly", "1,000"), ("who",)] and not faults.notes
        assert found[0].tags == ("O", "B-number")
    # A blank line between sentences in cells parts none.
    path, faults = write("e.csv", "Word,Tag\nfly home,O O\nwho,O\n\nwho,O\n"), Faults()
    assert len(Tagging(**options).read([path], faults)) == 3
    assert "blank lines" in faults.notes[0]


def test_a_word_with_a_space_leaves_the_others_in_their_rows(write):
    content = "tokens,tags\nto,O\nNew York,B-place\n\n10 000,O\nflew,O\n"
    path, faults = write("a.csv", content), Faults()
    found = Tagging().read([path], faults)
    assert [s.words for s in found] == [("to", "New York"), ("10 000", "flew")]
    assert len(Tagging().read([path], faults, labelled=False)) == 2 and not faults.notes
    # Without tags the other words tell.
    words = ["to", "New York", "\n10 000", *"abcdefghijklmnopqr"]
    path = write("b.csv", "\n".join(["tokens", *words, ""]))
    found = Tagging().read([path], faults, labelled=False)
    assert [len(s.words) for s in found] == [2, 19] and not faults.notes
    # Texts are parted by blank lines, too, and may have tags that are empty.
    path = write("c.csv", "tokens,tags\nwho,\nfly home,\n\nfly,\n")
    assert len(Tagging().read([path], faults, labelled=False)) == 3


def test_spans_may_stand_in_brackets(write):
    utterances = (
        "wake me at [time : 5:30 this morning] on [ date:friday ]!",
        "在[time : 五点]叫我",
        "no slot",
    )
    path = write("en-US.jsonl", [{"annot_utt": text, "intent": "alarm"} for text in utterances])
    task = Tagging(bracketed="annot_utt")
    found = task.read([path], Faults())
    assert " ".join(found[0].words) == "wake me at 5:30 this morning on friday !"
    assert found[0].tags == (*"OOO", "B-time", "I-time", "I-time", "O", "B-date", "O")
    assert (found[1].words, found[1].tags) == (
        tuple("在五点叫我"),
        ("O", "B-time", "I-time", *"OO"),
    )
    assert found[2].tags == ("O", "O") and task.learn(found).scheme == "bio"
    assert [s.tags for s in task.read([path], Faults(), labelled=False)] == [None] * 3
    for wrong, sentence in (
        ("at [time : five", r"line 1 has a bracket that is none of `\[type : words\]`"),
        ("at [five] am", "has a bracket that is none"),
        ("at [time : ] am", r"'\[time : \]' has no type or no word"),
        (" ", "line 1 has no words"),
    ):
        with pytest.raises(UserError, match=sentence):
            task.read([write("a.jsonl", [{"annot_utt": wrong}])], Faults())
    with pytest.raises(UserError, match=r"no column 'annot_utt' \(config\.options\.bracketed\)"):
        task.read([write("a.jsonl", [{"utt": "x"}])], Faults())
    content = "id;answer_annotation\n1;wake me at [time : five]\n"
    table = Tagging(bracketed="answer_annotation", delimiter=";")
    for name in ("a.csv", "a.txt"):
        assert table.read([write(name, content)], Faults())[0].tags == (*"OOO", "B-time")
    with pytest.raises(UserError, match=r"'\.txt' is no format.*config\.options\.delimiter"):
        task.read([write("a.txt", content)], Faults())

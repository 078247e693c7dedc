"""The clause of choices: whole for names, cut where something else stands in their place."""

from distilflax.errors import choose_from


def test_names_are_listed_and_the_nearest_is_told():
    assert choose_from("sentense", ["sentence", "label"]) == (
        "choose from sentence, label; did you mean 'sentence'?"
    )
    assert choose_from("x", []) == "there is nothing to choose from."
    names = [f"intent_number_{i}" for i in range(150)]
    assert choose_from("?", names) == f"choose from {', '.join(names)}."


def test_what_is_no_length_for_names_is_cut():
    long = "a column of much text " * 50_000
    found = choose_from("label", [long, "labels"])
    assert len(found) < 400 and found.endswith(", labels; did you mean 'labels'?")
    assert len(choose_from(long, [long])) < 400
    many = choose_from("?", map(str, range(100_000)))
    assert len(many) < 5000 and many.endswith(" ... (100,000 in all).")

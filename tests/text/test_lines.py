from distilflax.text.lines import whole


def test_half_a_surrogate_pair_becomes_one_character():
    assert len(whole("a\ud83db")) == 3
    whole("a\ud83db").encode()

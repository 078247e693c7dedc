import pytest

from distilflax.text import prose

NUMPYDOC = """
    Return the cumulative product of elements along a given axis.

    The result has the same shape as `a`, and :func:`~numpy.cumsum` is its sibling [1]_.

    Parameters
    ----------
    a : array_like
        Input array from which the product of the elements is taken.
    axis : int, optional
        Axis along which the cumulative product is computed.

    Returns
    -------
    ndarray
        A new array that holds the result unless ``out`` is specified.

    See Also
    --------
    cumsum : The cumulative sum of the elements.

    Examples
    --------
    >>> a = np.array([1, 2, 3])
    >>> np.cumprod(a)
    array([1, 2, 6])

    References
    ----------
    .. [1] Knuth, The Art of Computer Programming, a book that is not prose here.
"""

GOOGLE = """Opens a connection to the server and keeps it alive.

    The connection is shared between all threads of the process, so it is safe to call this twice.

    Args:
        host (`str`, *optional*, defaults to `"localhost"`):
            The name of the machine that the server is running on.
        port: The port on which the server will listen for us.

    Returns:
        A handle that closes the connection when it is garbage collected.

    Example:

    ```python
    connection = connect("the.host", 80)
    ```

    | Column | Meaning of the column in the table |
"""

SPHINX = """Sends one message to every subscriber of the channel.

    .. note:: This is the way that the author of the library wants it to be used.

    .. code-block:: python

        for message in the_channel: print(message) # this is not in the text

    Use it like this, when the channel is open::

        send("this is the literal block and must not be kept")

    :param channel: the channel that the message will be sent to
    :type channel: Channel
    :returns: the number of the subscribers that have been reached
    """


def text_of(docstring):
    title, body = prose.entry(docstring)
    return title, "\n".join(body)


def test_numpydoc_keeps_sentences_and_drops_types_examples_and_references():
    title, body = text_of(NUMPYDOC)
    assert title == "Return the cumulative product of elements along a given axis"
    assert "The result has the same shape as a, and numpy.cumsum is its sibling." in body
    assert "Axis along which the cumulative product is computed." in body
    assert "A new array that holds the result unless out is specified." in body
    for dropped in ("array_like", "ndarray\n", ">>>", "Knuth", "----", "cumulative sum", "[1]"):
        assert dropped not in body


def test_google_sections_keep_descriptions_without_names():
    title, body = text_of(GOOGLE)
    assert title == "Opens a connection to the server and keeps it alive"
    assert body.split("\n")[1:] == [
        "The name of the machine that the server is running on.",
        "The port on which the server will listen for us.",
        "A handle that closes the connection when it is garbage collected.",
    ]


def test_sphinx_directives_and_literal_blocks():
    _, body = text_of(SPHINX)
    assert "This is the way that the author" in body
    assert "the channel that the message will be sent to" in body
    assert "the number of the subscribers that have been reached" in body
    for dropped in ("for message", "literal block", "Channel\n", ":param", "note::"):
        assert dropped not in body


def test_the_title_is_the_first_sentence_and_the_rest_of_its_paragraph_stays():
    title, body = text_of(
        "Fits the model to the data, e.g. In a loop. It is the slowest of all the methods "
        "in this module, so\ncall it only when you have to do it.\n\n" + "It can be stopped. " * 6
    )
    assert title == "Fits the model to the data, e.g. In a loop"
    assert body.startswith("It is the slowest of all the methods in this module, so call it only")


@pytest.mark.parametrize(
    "docstring",
    [
        "One line only, and it is a good one.",
        "Run it.\n\n" + "This is a body that is long enough to be one, if it had a title. " * 4,
        "A title that goes on in the\n\n" + "This is a body that is long enough to be one. " * 5,
        "Returns the thing that was asked for.\n\nShort body, it is.",
        "Returns the thing that was asked for.\n\n>>> of, the, and, to = a, list, in, doctest\n"
        * 9,
        "",
        "\n\n\n",
    ],
)
def test_what_has_no_title_or_no_body_is_no_entry(docstring):
    assert prose.entry(docstring) is None


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("The axis along which the values are sorted.", True),
        ("optional, the name of the file to write to", True),
        ("x = foo(bar) if the value is in the list", False),
        ("alpha beta gamma delta epsilon zeta", False),
        ("a | b | c | the | of | to | in | is", False),
        ("for i in range(10): the_sum += i * 2 == of", False),
        ("The value is {value} and not the other one.", False),
        ("├── the folder that is the root of it all", False),
        ("Too short.", False),
    ],
)
def test_is_english(text, english):
    assert prose.is_english(text) is english


def test_plain_words_leave_out_identifiers():
    assert prose.plain_words("Constructs a BertConfig for torch.nn use, Really") == (
        "constructs a for use really"
    )

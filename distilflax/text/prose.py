"""A docstring to English: markup, code, tables and type lines go, sentences stay.

Docstrings come in reST, numpydoc, Google style and Markdown, often mixed and mostly badly formed. A
parser for each would reject half of them, so this is one pass over the lines that recognises what
is *not* prose (`_Reader`), and one test that a paragraph must pass to count as English
(`is_english`). Nothing here raises on malformed text: what is not recognised is left out.
"""

import inspect
import re


def words(text: str) -> frozenset[str]:
    """The words of a text, for looking others up in."""
    return frozenset(text.split())


# Sections that hold no sentences: everything below such a heading is dropped.
_SKIPPED_SECTIONS = words(
    "example examples usage references reference seealso methods shape doctest doctests author "
    "authors copyright license bibliography code sample"
) | {"see also", "example usage", "usage example", "usage examples", "sample code"}

# Sections that are lists of fields: a name and a type, then the sentences that we want.
_FIELD_SECTIONS = words(
    "args arguments parameters params attributes returns return yields yield raises raise keyword "
    "keywords kwargs properties exceptions receives warns inputs outputs input output"
) | {"other parameters", "keyword args", "keyword arguments", "class attributes"}

# Directives whose content is prose; the content of any other one is code, mathematics or a table.
_PROSE_DIRECTIVES = words("note warning important tip hint attention caution admonition")

_UNDERLINE = re.compile(r"([-=~^*#+_.])\1{2,}")
_HEADING = re.compile(r"(#* *)\**([A-Za-z][A-Za-z ]{2,24})\**:?\**")
_DIRECTIVE = re.compile(r"\.\. +(?:([\w:-]+)::)? ?(.*)")
_BULLET = re.compile(r"(?:[-*+•]|o(?= [A-Z])|\(?\d{1,2}[.)]|\(?[a-z][.)]) +(?=\S)")
_ROLE_FIELD = re.compile(
    r"[:@](param|arg|returns?|raises?|yields?|keyword|var|ivar|cvar|type|rtype|vartype)\b[^:]*:"
)
_TYPED_FIELD = re.compile(r"[-`* ]*[\w.*]+[`*]* ?\([^()]*(?:\([^()]*\)[^()]*)*\) ?(?::(?!\w)|$)")
_NAMED_FIELD = re.compile(r"[`*]*[\w.*]+[`*]* ?:(?: |$)")
_NUMPYDOC_FIELD = re.compile(r"[`*]*[\w.*]+[`*]*(?:, *[\w.*`]+)* : ?\S")
_TABLE = re.compile(r"[|+]|.*\S {3,}\S|.*\S +\| ")

_ROLE = re.compile(r":(?:\w+:)?\w+:`(?:[^`<]*<)?~?!?([^`<>]+)>?`")  # :class:`~module.Name`
_REST_LINK = re.compile(r"`([^`<>]+?)\s*<[^`<>]*>`__?")  # `text <address>`_
_MARKDOWN_LINK = re.compile(r"!?\[([^\[\]]+)\](?:\([^()\s]*\)|\[\])")  # [text](address)
_CITATION = re.compile(r"\s?\[(?:\d+|[A-Z][\w+]*\d+)\](?:_+)?")  # [1]_ and [Knuth97]_
_BACKTICKS = re.compile(r"`+_{0,2}")
_EMPHASIS = re.compile(r"(?<!\w)\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?!\w)")
_ADDRESS = re.compile(r"\s*<?https?://[^\s>]+>?")
_SPACE_BEFORE_STOP = re.compile(r" +([.,;:])(?=\s|$)")

SHORTEST_BODY = 150  # characters; less than two sentences do not identify what they are about
_PLAIN_WORD = re.compile(r"(?<![\w.])[A-Za-z][a-z]*\b(?!\.\w)")  # and no identifier
_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")
# English cannot do without these; code, and lists of names, can.
_FUNCTION_WORDS = words(
    "a an the of to in is are be and or for with that this if it as by on from not can will which "
    "when at has have was were its one all any each into than then these should may must no you "
    "used use only but does do given such whether where their other same between"
)
_CODE = re.compile(
    r"[\\$]|[{}=<>@%^~|]{2,}|\w=\S|\w = \w+[(\[]|^(?:import|from \w+ import)\b|%\(|\{\w*\}|___"
    r"|[^\x00-\u024f\u2000-\u206f]"  # and neither Latin nor punctuation: boxes, mathematics
)
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)'\"])[.!?] +(?=[A-Z\"'(])")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|al|resp|approx|Fig|Eq|Dr|Mr|St)$")
# A title that ends so goes on in something that was dropped.
_UNFINISHED = re.compile(
    r"(?:\b(?:a|an|the|of|to|in|is|are|by|and|or|for|with|that|as|on|from|like|using|via)|[,(-])$",
    re.I,
)


def entry(docstring: str) -> tuple[str, list[str]] | None:
    """The title and the body paragraphs of a docstring, or None where it lacks either.

    The title is the first sentence, without its full stop. Every paragraph comes as one line
    without markup, and the whole is what a reader would call English.
    """
    lines = inspect.cleandoc(docstring).split("\n")
    opening, paragraphs = _Reader().read(lines)
    if not opening:
        return None
    title, rest = split_title(opening)
    if not is_title(title):
        return None
    body = [text for text in [rest, *paragraphs] if is_english(text)]
    return (title, body) if sum(map(len, body)) >= SHORTEST_BODY else None


def split_title(paragraph: str) -> tuple[str, str]:
    """The first sentence of a paragraph, without what ends it, and the rest."""
    for stop in _SENTENCE_END.finditer(paragraph):
        if not _ABBREVIATION.search(paragraph, 0, stop.start()):
            return paragraph[: stop.start()].strip(), paragraph[stop.end() :].strip()
    return paragraph.strip().rstrip(".:").removesuffix(", e.g"), ""


def is_title(text: str) -> bool:
    """Whether a first sentence says enough to find the text below it by."""
    if not 15 <= len(text) <= 240 or not text[0].isalpha() or _CODE.search(text):
        return False
    enough = len(_PLAIN_WORD.findall(text)) >= 4 and _letters(text, _WORD.findall(text)) >= 0.85
    return enough and not _UNFINISHED.search(text)


def plain_words(text: str) -> str:
    """The words of a text that are not identifiers, in lower case."""
    return " ".join(_PLAIN_WORD.findall(text)).lower()


def is_english(text: str) -> bool:
    """Whether one paragraph reads as sentences rather than as code, a list of names or a table."""
    if len(text) < 20 or not (text[0].isalpha() or text[0] in "\"'(") or _CODE.search(text):
        return False
    found = _WORD.findall(text)
    if len(found) < 5 or _letters(text, found) < 0.85:
        return False
    return sum(word in _FUNCTION_WORDS for word in found) >= 0.15 * len(found)


def _letters(text: str, found: list[str]) -> float:
    """The share of a text that is words and the spaces between them."""
    return (sum(map(len, found)) + text.count(" ")) / len(text)


class _Reader:
    """Reads the lines of one docstring into paragraphs; the state is where in the markup we are."""

    def __init__(self):
        self.opening = ""
        self.paragraphs: list[str] = []
        self.buffer: list[str] = []
        self.before_anything = True
        self.fence = ""  # the marker that closes a Markdown block
        self.in_doctest = False  # up to the next blank line
        self.deeper_than = -1  # drop lines indented more than this: a literal block or directive
        self.literal_follows = False
        self.section, self.section_indent, self.numpydoc = "", 0, False

    def read(self, lines: list[str]) -> tuple[str, list[str]]:
        """The paragraph that opens the docstring ("" where something else does) and the others."""
        previous_indent = 0
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            text = line.strip()
            indent = len(line) - len(line.lstrip())
            if self.fence:
                self.fence = "" if text.startswith(self.fence) else self.fence
            elif not text:
                self._blank(previous_indent)
            elif not self._is_dropped(indent):
                self._line(text, indent, following)
                previous_indent = indent
        self._end_paragraph()
        return self.opening, self.paragraphs

    def _blank(self, previous_indent: int):
        self._end_paragraph()
        self.in_doctest = False
        if self.literal_follows:
            self.literal_follows, self.deeper_than = False, previous_indent

    def _is_dropped(self, indent: int) -> bool:
        if self.deeper_than >= 0 and indent <= self.deeper_than:
            self.deeper_than = -1
        if self.section and not self.numpydoc and indent <= self.section_indent:
            self.section = ""  # a Google section ends where its indentation does
        return self.in_doctest or self.deeper_than >= 0

    def _line(self, text: str, indent: int, following: str):
        if not text[0].isalnum():
            if _UNDERLINE.fullmatch(text):
                heading = self.buffer.pop() if self.buffer else ""
                return self._heading(heading.strip(" *`:").lower(), indent, numpydoc=True)
            if text.startswith((">>>", "In [", "$ ")):
                self._end_paragraph(and_title=True)
                self.in_doctest = True
                return None
            if text.startswith(("```", "~~~")):
                self._end_paragraph(and_title=True)
                self.fence = text[:3]
                return None
        if text[0] in "#*" or text[-1] in ":*":
            heading = _HEADING.fullmatch(text)
            name = heading[2].strip().lower() if heading else ""
            if name in _SKIPPED_SECTIONS or name in _FIELD_SECTIONS:
                return self._heading(name, indent, numpydoc=False)
            if heading and heading[1].startswith("#"):
                return self._heading("", indent, numpydoc=False)
        if self.section in _SKIPPED_SECTIONS:
            return None
        if text.startswith(".."):
            return self._directive(text, indent)
        if ("|" in text or "   " in text or text[0] == "+") and _TABLE.match(text):
            return self._end_paragraph(and_title=True)
        text = self._without_field(text, indent, following)
        if text.endswith("::"):
            text, self.literal_follows = text[:-1], True
        if text:
            self.buffer.append(text)
        return None

    def _without_field(self, text: str, indent: int, following: str) -> str:
        """A line without the name and type that open it; those of a field end a paragraph."""
        if self.section in _FIELD_SECTIONS and self.numpydoc and indent <= self.section_indent:
            # "name : type", or the bare type under Returns; the sentence is indented below it.
            self._end_paragraph()
            is_type = len(following) - len(following.lstrip()) > indent
            return "" if is_type or _NUMPYDOC_FIELD.match(text) else text
        if " : " in text and _NUMPYDOC_FIELD.match(text):
            self._end_paragraph(and_title=True)
            return ""
        start = None
        if text[0] in ":@":
            start = _ROLE_FIELD.match(text)
            if start and "type" in start[1]:
                self._end_paragraph(and_title=True)
                return ""
        elif ")" in text:
            start = _TYPED_FIELD.match(text)
        if not start and self.section in _FIELD_SECTIONS and ":" in text:
            start = _NAMED_FIELD.match(text)
        if not start:
            start = _BULLET.match(text)
        if not start:
            return text
        self._end_paragraph(and_title=True)
        return text[start.end() :].strip()

    def _heading(self, name: str, indent: int, *, numpydoc: bool):
        self._end_paragraph(and_title=bool(name))
        self.section, self.section_indent, self.numpydoc = name, indent, numpydoc

    def _directive(self, text: str, indent: int):
        self._end_paragraph(and_title=True)
        directive = _DIRECTIVE.match(text)
        if directive and directive[1] in _PROSE_DIRECTIVES:
            self.buffer += [directive[2]] if directive[2] else []
        else:
            self.deeper_than = indent

    def _end_paragraph(self, and_title: bool = False):
        """Closes the open paragraph; with `and_title`, what follows can no longer be the title."""
        if self.buffer:
            text = without_markup(" ".join(self.buffer))
            self.buffer.clear()
            if self.before_anything:
                self.opening = text
            elif text:
                self.paragraphs.append(text)
            self.before_anything = False
        self.before_anything = self.before_anything and not and_title


def without_markup(text: str) -> str:
    """One paragraph without reST or Markdown: the words of links and roles, no addresses."""
    if "`" in text:
        text = _ROLE.sub(r"\1", text)
        text = _REST_LINK.sub(r"\1", text)
        text = _BACKTICKS.sub("", text)
    if "[" in text:
        text = _CITATION.sub("", _MARKDOWN_LINK.sub(r"\1", text))
    if "*" in text:
        text = _EMPHASIS.sub(r"\1", text)
    if "://" in text:
        text = _ADDRESS.sub("", text)
    text = " ".join(text.split())
    return _SPACE_BEFORE_STOP.sub(r"\1", text) if " ." in text or " ," in text else text

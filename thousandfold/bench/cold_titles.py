"""What a movie's title says before anybody has rated it: whether it is a sequel, or has a foreign title."""

import re
from typing import Literal

Mark = Literal["sequel", "foreign", "plain"]
_YEAR = re.compile(r"\s*\(\d{4}\)$")
_WORD = re.compile(r"[a-z0-9']+")
_NUMBERED = frozenset(("ii", "iii", "iv", "v", "vi", "vii", "viii", *"23456789"))
_AGAIN = frozenset(("return", "returns", "revenge"))
_FOREIGN = re.compile(r", (la|le|les|il|el|das|der|die|l')( |$)|\)$")
"""An article of another language, moved to the end as MovieLens does, or a second title in brackets."""


def mark(title: str) -> Mark:
    """The mark of a title as MovieLens writes it, with its year at the end.

    A number after the first word makes it a sequel, and so does a return.

    >>> mark("Toy Story 2 (1999)"), mark("Cité des enfants perdus, La (1995)"), mark("Seven (Se7en) (1995)")
    ('sequel', 'foreign', 'foreign')
    >>> mark("12 Angry Men (1957)")
    'plain'
    """
    bare = _YEAR.sub("", title.lower())
    words = _WORD.findall(bare)
    if _NUMBERED.intersection(words[1:]) or _AGAIN.intersection(words):
        return "sequel"
    return "foreign" if _FOREIGN.search(bare) else "plain"

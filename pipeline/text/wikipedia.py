"""Read the prose of a Wikipedia dump."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

SHORTEST_ARTICLE_WORDS = 200
"""Wikipedia pages with less prose are stubs or lists of links."""
END_MATTER = re.compile(
    r"^==\s*(?:See also|Notes|Notes and references|References|Footnotes|Citations|Sources"
    r"|Bibliography|Further reading|External links)\s*==\s*$",
    re.MULTILINE | re.IGNORECASE,
)
NOT_PROSE = {"ref", "references", "table", "gallery", "math", "timeline", "imagemap"}
NOT_TEXT_LINKS = ("file:", "image:", "category:")
TABLE_LINES = ("{|", "|", "!")
"""What is left of tables that are not closed."""


def articles(dump: Any) -> Iterator[tuple[str, str]]:
    """Yield (title, markup) of the articles in a MediaWiki export."""
    for _, page in ElementTree.iterparse(dump):
        if page.tag.endswith("}page"):
            redirect = page.find("{*}redirect") is not None
            if not redirect and page.findtext("{*}ns") == "0":
                text = page.findtext("{*}revision/{*}text", "")
                yield page.findtext("{*}title", ""), text
            page.clear()  # the whole tree of a dump would not fit in memory


def plain_text(markup: str) -> str:
    """Return the prose of a wiki page: no tables, notes, pictures, end matter or markup."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Node, Tag, Wikilink
    from mwparserfromhell.wikicode import Wikicode

    def is_noise(node: Node) -> bool:
        if isinstance(node, Tag):
            return str(node.tag).strip().lower() in NOT_PROSE
        return isinstance(node, Wikilink) and str(node.title).lower().startswith(NOT_TEXT_LINKS)

    def prune(code: Wikicode) -> None:  # the library's own remove searches the tree each time
        code.nodes = [node for node in code.nodes if not is_noise(node)]
        for node in code.nodes:
            if isinstance(node, Tag) and node.contents is not None:
                prune(node.contents)

    # quotes for bold and italic are often unbalanced, and then hide the markup inside them
    code = mwparserfromhell.parse(END_MATTER.split(markup, maxsplit=1)[0], skip_style_tags=True)
    prune(code)
    text = re.sub(r"'{2,}|\s*\([\s,;]*\)", "", code.strip_code())  # also what templates left empty
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n\n".join(line for line in lines if line and not line.startswith(TABLE_LINES))

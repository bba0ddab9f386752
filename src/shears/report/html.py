"""Elements of HTML and SVG, safe by construction: a text is escaped, an element is not escaped twice."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

__all__ = ["Markup", "document", "element", "join", "number", "table"]
VOID = frozenset({"meta", "br", "link"})


def document(head: Markup, body: Markup) -> str:
    """Return a whole page, with ? for what is no character (half of one, a byte of a folder's name)."""
    text = f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
    return text.encode(errors="replace").decode()


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return `<name attributes>children</name>`.

    `class_` is written class, `text_anchor` text-anchor; an attribute that is None is left out, as is such a child.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = join(child for child in children if child is not None)
    return Markup(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{inside}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Return the parts behind one another, texts among them escaped."""
    return Markup("").join(map(escape, parts))


def number(value: object) -> object:
    """Return a float as short as a picture needs it, anything else as it is."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table that scrolls by itself where it is wider than the page; the first cell of a row names the row."""
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    )
    columns = (element("th", title, scope="col") for title in head)
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *columns)),
        element("tbody", *body),
    )
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)

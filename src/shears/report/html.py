"""Elements of HTML and SVG, and the parts that pages are made of: tables, sections and pictures.

Safe by construction: texts are escaped, elements are never escaped twice.
"""

from collections.abc import Iterable, Sequence
from importlib.resources import files

from markupsafe import Markup, escape


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return `<name attributes>children</name>`.

    `class_` becomes class, and `text_anchor` text-anchor. None leaves an attribute or child out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_shortened(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = join(child for child in children if child is not None)
    end = "" if name == "meta" else f"{inside}</{name}>"  # meta is the one element here without an end tag
    return Markup(f"<{name}{written}>{end}")


def join(parts: Iterable[object]) -> Markup:
    """Return the concatenation of elements and texts; texts are escaped."""
    return Markup("").join(map(escape, parts))


def _shortened(value: object) -> object:
    """Return a float with at most two decimals, enough for a drawing; others unchanged."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def asset(name: str) -> str:
    """Return the text of a file that is shipped with this package, such as style.css."""
    return files("shears.report").joinpath(name).read_text("utf-8")


def document(title: str, body: Markup, style: str, policy: str | None = None) -> str:
    """Return a page with its content security policy; invalid characters become `?`."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy) if policy else None,
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"shears: {title}"),
        element("style", Markup(style)),  # not escaped: a file of this package
    )
    text = f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
    return text.encode(errors="replace").decode()


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table that scrolls if it is wide; the first cell of a row is its heading."""
    columns = element("tr", *(element("th", title, scope="col") for title in head))
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    )
    content = element("table", element("caption", caption), element("thead", columns), element("tbody", *body))
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)


def section(key: str, title: str, lead: object, *content: object) -> Markup:
    """Return a section, its parts side by side if the page is wide enough; links point at `key`."""
    heading = element("h2", title, id=f"{key}-title")
    parts = element("div", *content, class_="pair")
    return element("section", heading, element("p", lead), parts, id=key, aria_labelledby=f"{key}-title")


def picture(name: str, drawing: Markup, data: Markup, note: Markup | None = None) -> Markup:
    """Return a drawing with its caption, a note, and its table, which a click opens."""
    details = element("details", element("summary", "As a table", aria_label=f"As a table: {name}"), data)
    return element("figure", element("figcaption", name), drawing, note, details)


def note(words: str) -> Markup:
    """Return a line below a drawing."""
    return element("p", words, class_="note")

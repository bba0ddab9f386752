"""The parts every section is made of: a heading, words, and pictures with their table behind them."""

from markupsafe import Markup

from shears.report.html import element


def section(key: str, title: str, lead: object, *content: object) -> Markup:
    """Return a section of the page, its parts side by side where there is room; `key` is what links point at."""
    heading = element("h2", title, id=f"{key}-title")
    return element(
        "section",
        heading,
        element("p", lead),
        element("div", *content, class_="pair"),
        id=key,
        aria_labelledby=f"{key}-title",
    )


def picture(name: str, drawing: Markup, data: Markup, note: Markup | None = None) -> Markup:
    """Return a drawing with its name, a note below it, and the table behind it."""
    more = element("details", element("summary", "As a table", aria_label=f"As a table: {name}"), data)
    return element("figure", element("figcaption", name), drawing, note, more)


def note(words: str) -> Markup:
    """Return a line below a drawing."""
    return element("p", words, class_="note")


def pointed_at(hint: str) -> Markup:
    """Return the line below a drawing that says what is pointed at; before that, `hint`."""
    return element("output", hint, class_="note said", aria_live="polite")

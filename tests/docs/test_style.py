"""The user pages read as plain English: few figures, verbs, no translated idioms, examples.

Code, headings, pictures and the targets of links are left out, and tables too, except from the
banned phrases. A sentence holds at most two figures. A name with digits in it (int4, 0.5B, 4-bit,
2:4, Python 3.11, HTTP 400) is no figure, a share or a range ("45 of 200", "2 to 3") is one, and an
interval in brackets belongs to its figure. Every sentence has a verb of verbs.txt, with or without
-s, or a past form after its subject. A list item without a full stop is a part of the sentence
before the list. In guides, every heading but "Next" has a code block, a table or a command within
ten lines.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import FENCE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS.glob("*.md"), *GUIDES, *(DOCS / "reference").glob("*.md")]
BANNED = re.compile(
    r"\b((is|are) (told|warned of)|stands? (in|beside|behind|apart)|kept apart|says minutes"
    r"|holds for|as (it|they) came|to be had|alike|goes on|mend(s|ed)?|by heart|taught|the road"
    r"|behind (the|its|each|every) (first|last|block|step|stage|training|run))\b"
)
NAME = re.compile(r"\b(Python|CUDA|Zen|HTTP|status|code|PEFT|transformers|Llama|Qwen|arXiv) [\d.]+")
INTERVAL = re.compile(r"\([^()]*\d to [^()]*\)")
FIGURE = re.compile(r"(?<![\w.,:/-])[+-]?\d[\d.,]*+(?![\w:/-])( %)?( (to|of) [+-]?\d[\d.,]*+(?![\w-]))?")
WORDS = Path(__file__).with_name("verbs.txt").read_text().split()
VERBS = {word + end for word in WORDS for end in ("", "s", "es")}
PAST = re.compile(r"\b(we|you|it|they|that|which|who|\w+s|\w+ing) \w+ed\b", re.IGNORECASE)
EXAMPLE = re.compile(r"^(```|\||    )|`(shears|--|pip)", re.MULTILINE)


def sentences(page: str) -> Iterator[str]:
    """Yield the sentences of a page; a colon ends one at the end of a paragraph only."""
    text = re.sub(r"^(#|--8|\||:::|<|!\[|\\\*).*$", "", FENCE.sub("", page), flags=re.MULTILINE)
    text = re.sub(r"(?:\A|\n\n)(?: {4}[^\n]*\n+)+", "\n\n", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "CODE", text))
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", text.replace("*", "")):
        words = " ".join(paragraph.split())
        if words and not re.match(r"(-|\d+\.) .*[^.?!:)]$", words):
            yield from re.split(r"(?<=[.?!])[\")]* +(?=[\"(]*[A-Z])", re.sub(r"^(-|\d+\.) ", "", words))


def faults(page: str, is_guide: bool = False) -> list[str]:
    """Return what a page must not have, one line each."""
    found = []
    for sentence in sentences(page):
        figures = list(FIGURE.finditer(NAME.sub("", INTERVAL.sub("", sentence))))
        has_verb = set(re.findall(r"[a-z']+", sentence.lower())) & VERBS or PAST.search(sentence)
        found += [f"{len(figures)} figures: {sentence}"] if len(figures) > 2 else []
        found += [] if has_verb else [f"no verb: {sentence}"]
    prose = " ".join(re.sub(r"`[^`]*`", "", FENCE.sub("", page)).split())
    found += [prose[max(0, match.start() - 40) : match.end()] for match in BANNED.finditer(prose)]
    return found + [f"no example: {heading}" for heading in bare_headings(page) if is_guide]


def bare_headings(page: str) -> Iterator[str]:
    """Yield the headings (## and deeper) without an example within ten lines."""
    lines = page.splitlines()
    for index, line in enumerate(lines):
        is_heading = re.match(r"##+ (?!Next$)", line)
        if is_heading and not EXAMPLE.search("\n".join(lines[index + 1 : index + 11])):
            yield line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_user_page_has_few_figures_whole_sentences_and_examples(page: Path) -> None:
    assert faults(page.read_text(), is_guide=page in GUIDES) == []


@pytest.mark.parametrize(
    "planted",
    ["Two thirds of the bytes of 135M.", "It has 3 points, 4 seeds and 5 cores.",
     "It has 2.5 %, 3 to 4 MB and 20.", "A missing column is told.", "It stands beside it.",
     "The rows are kept apart.", "That holds for int4.", "It is the model as it came.",
     "It is not to be had.", "They train alike.", "It fails behind the first block.",
     "| a | `b` |\n| a row that is warned of | 3 |", "## Empty\n\nThis shows it.\n\n## Next\n"],
)  # fmt: skip
def test_the_check_finds_a_planted_fault(planted: str) -> None:
    good = "# A page\n\nIt has 53 of 200 (46.1 to 59.8) in int4 at 0.5B on Python 3.11, in 3 MB.\n"
    good += "\n## Run it\n\n    shears inspect\n\n- no sentence, 3, 4, 5\n"
    assert faults(good, is_guide=True) == []
    assert len(faults(f"{good}\n{planted}\n", is_guide=True)) == 1

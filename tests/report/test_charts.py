"""Scales, ticks and escaping: small pure pieces with properties."""

import itertools
import math
from html import unescape
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from shears.report.charts import Scale, around, stairs, ticks
from shears.report.html import element, table
from shears.report.stages import MOST_POINTS, parts_of
from shears.report.words import count, duration, times

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, FINITE)
def test_ticks_are_few_round_and_inside(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high)
    assert len(found) <= 6
    if high - low > 1e-6 * max(abs(low), abs(high), 1.0):
        spare = 1e-6 * (high - low)
        assert all(low - spare <= tick <= high + spare for tick in found)
        steps = {f"{b - a:.3e}"[0] for a, b in itertools.pairwise(found)}
        assert steps <= {"1", "2", "5", "9", "4"}  # 9.99 and 4.99 are roundings of 10 and 5


def test_ticks_are_those_a_person_would_choose() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3.0, 17.0) == [5.0, 10.0, 15.0]
    assert ticks(5.0, 5.0) == [5.0]
    assert ticks(0.0, 5e-324) == [0.0]


def test_stairs_keep_their_height_until_the_next_point() -> None:
    assert stairs([(0.0, 3.0), (2.0, 1.0), (5.0, 4.0)]) == [
        (0.0, 3.0), (2.0, 3.0), (2.0, 1.0), (5.0, 1.0), (5.0, 4.0)
    ]  # fmt: skip
    assert stairs([(1.0, 1.0)]) == [(1.0, 1.0)]
    assert stairs([]) == []


@given(st.lists(FINITE, min_size=1))
def test_a_scale_keeps_order_and_ends(values: list[float]) -> None:
    low, high = around(values)
    scale = Scale(low, high, 10.0, 110.0)
    places = [scale(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(10.0 <= place <= 110.0 for place in places)
    assert Scale(1.0, 1.0, 0.0, 100.0)(1.0) == 50.0


@given(st.lists(st.one_of(FINITE, st.just(math.inf), st.just(math.nan))))
def test_a_range_is_finite(values: list[float]) -> None:
    low, high = around(values)
    assert math.isfinite(low)
    assert low < high


@given(st.integers(1, 2000))
def test_parts_cover_every_step_once(size: int) -> None:
    parts = parts_of(size)
    assert [index for part in parts for index in range(size)[part]] == list(range(size))
    assert len(parts) <= MOST_POINTS


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.values = "", list[str](), list[str | None]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_and_attribute_comes_back_from_a_parser(words: str) -> None:
    reader = _Texts()
    reader.feed(element("p", words, title=words))
    reader.close()
    assert reader.tags == ["p"]
    assert reader.text == words
    assert reader.values == [words]


def test_elements_inside_elements_are_escaped_once() -> None:
    inner = element("b", "<&>")
    assert element("p", inner) == "<p><b>&lt;&amp;&gt;</b></p>"
    assert unescape(element("p", "<&>")) == "<p><&></p>"
    assert "<td>&lt;i&gt;</td>" in table("t", ("a", "b"), [("x", "<i>")])
    assert element("line", x1=1.0, y1=2.345678, class_="grid", id=None) == '<line x1="1" y1="2.35" class="grid"></line>'


def test_counts_are_read_in_their_unit() -> None:
    assert [count(value).replace("\N{NO-BREAK SPACE}", " ") for value in (999, 1500, 134_200_000, 7e9)] == [
        "999", "1.5 k", "134.2 M", "7 G"]  # fmt: skip
    assert (times(1.9), times(12.3)) == ("1.90x", "12x")
    assert [duration(value).replace("\N{NO-BREAK SPACE}", " ") for value in (0.44, 42, 59.7, 93.2, 7500)] == [
        "0.4 s", "42 s", "1 min 0 s", "1 min 33 s", "2 h 5 min"]  # fmt: skip

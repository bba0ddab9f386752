"""What compare prints: tables that fit into 80 columns, a plot that shows the interval where it is."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shears import compare
from shears.cli import tables
from shears.cli.sharing import print_comparison, whisker


def _data(folder: Path, arms: int) -> dict[str, Any]:
    files = []
    for arm in range(arms):
        records = [{"id": str(n), "correct": (n * 7 + arm * 3) % (arm + 2) > 0} for n in range(200)]
        files.append(folder / f"arm-{arm}.json")
        files[-1].write_text(json.dumps({"records": records}))
    return compare([f"sparse + sub-adapter {arm}={file}" for arm, file in enumerate(files)])


def _printed(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, encoding: str) -> list[str]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(tables, "console", Console(file=file, width=80, _environ={}))
    print_comparison(data)
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("arms", [2, 4])
def test_the_tables_fit_and_say_everything(
    arms: int, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _data(tmp_path, arms)
    lines = _printed(data, monkeypatch, encoding)
    assert max(map(len, lines[:-1])) <= 80  # the last line is one sentence, left to the terminal to wrap
    text = "\n".join(lines)
    assert "…" not in text
    assert "accuracy on 200 examples" in text
    assert f"{data['arms'][1]['value']:.1%}" in text
    assert f"{100 * data['differences'][0]['value']:+.1f}" in text
    assert ("(Holm)" in text) == (arms > 2)
    assert text.count("o" if encoding == "ascii" else "●") >= arms


def test_every_task_has_its_tables_and_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = _data(tmp_path, 2), _data(tmp_path, 2)
    tasks = [{**one, "task": "arc[/b]"}, {**other, "task": "boolq", "notes": ["b saw 3 questions."]}]
    text = "\n".join(_printed({"against": one["against"], "tasks": tasks}, monkeypatch, "utf-8"))
    assert "accuracy on 200 examples of arc[/b]" in text
    assert "accuracy on 200 examples of boolq" in text
    assert text.count("b saw 3 questions.") == 1
    assert text.count("p (Holm)") == 2  # two differences in all
    assert text.count("p: McNemar") == 1


def test_names_are_printed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _data(tmp_path, 2)
    for arm, name in zip(data["arms"], ("lr[bold]", "a[/b]"), strict=True):
        arm["name"] = name
    data["against"], data["differences"][0]["name"] = "lr[bold]", "a[/b]"
    text = "\n".join(_printed(data, monkeypatch, "utf-8"))
    assert text.count("lr[bold]") == 2  # an arm, and in the title of the differences
    assert text.count("a[/b]") == 2


def test_the_plot_shows_the_interval_where_it_is() -> None:
    assert whisker(0.5, [0.25, 1.0], 0.0, 1.0, width=5) == " ├●─┤"
    assert whisker(1.0, [1.0, 1.0], 0.0, 1.0, width=5) == "    ●"
    assert whisker(0.0, [0.0, 0.5], 0.0, 1.0, width=5) == "●─┤  "

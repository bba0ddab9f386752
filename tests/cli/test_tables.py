"""The heat map is legible with and without colours, folds equal layers and fits the terminal."""

import io
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shears.cli import tables
from shears.runs.plan import RunPlan

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEEPSEEK = [
    "q_a_proj",
    "q_b_proj",
    "kv_a_proj_with_mqa",
    "o_proj",
    *(f"{parent}.{leaf}" for parent in ("mlp", "experts", "shared_experts") for leaf in LLAMA[4:]),
]
Lines = Callable[..., list[str]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Return what print_inspection prints to a console with the given options, line by line."""

    def lines(data: Mapping[str, Any], encoding: str = "utf-8", **options: Any) -> list[str]:
        raw = io.BytesIO()
        file = io.TextIOWrapper(raw, encoding=encoding)
        settings: dict[str, Any] = {"width": 80, "force_terminal": False, "_environ": {}, **options}
        monkeypatch.setattr(tables, "console", Console(file=file, **settings))
        tables.print_inspection(data)
        file.flush()
        return raw.getvalue().decode(encoding).splitlines()

    return lines


def _data(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    return {
        "path": "sparse",
        "kind": "sparse model",
        "sparsity": 0.5,
        "sparsity_by_layer": dict.fromkeys(rows, 0.5),
        "sparsity_by_kind": dict.fromkeys(kinds, 0.25),
        "sparsity_by_linear": rows,
    }


def _rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of the map's rows; without colours and Unicode, lines separate them."""
    return [line.replace("|", " ").split() for line in lines if "%" in line]


def test_equal_neighbours_are_one_row_and_others_stand_alone(printed: Lines) -> None:
    rows = {str(layer): dict.fromkeys(LLAMA, 0.5) for layer in range(30)}
    rows["3"] = {**rows["3"], "down_proj": 0.4}
    rows["29"] = dict.fromkeys(LLAMA, 0.4)
    printed_rows = _rows(printed(_data(rows), encoding="ascii"))
    assert [row[0] for row in printed_rows] == ["0-2", "3", "4-28", "29", "all"]
    assert printed_rows[1][1:] == ["50.0%"] * 6 + ["40.0%", "50.0%"]
    assert printed_rows[-1][1:] == ["25.0%"] * 7 + ["50.0%"]


def test_layers_that_differ_below_what_is_printed_are_one_row(printed: Lines) -> None:
    rows = {"0": {"q_proj": 0.50001}, "1": {"q_proj": 0.5}}
    assert [row[0] for row in _rows(printed(_data(rows)))] == ["0-1", "all"]


def test_a_model_of_equal_layers_still_shows_its_map(printed: Lines) -> None:
    lines = printed(_data({str(layer): dict.fromkeys(LLAMA, 0.5) for layer in range(30)}))
    assert ["0-29", *["▄50.0%"] * 8] in _rows(lines)
    header = next(line for line in lines if "q_proj" in line)
    assert header.split() == ["layers", *LLAMA, "all"]


@pytest.mark.parametrize(("share", "cell"), [(0.0, "0.0%"), (0.06, "6.0%"), (0.5, "▄50.0%"), (1.0, "█100.0%")])
def test_without_colours_a_bar_stands_for_the_shade(printed: Lines, share: float, cell: str) -> None:
    lines = printed(_data({"7": {"q_proj": share}}))
    assert _rows(lines)[0][:2] == ["7", cell]
    assert "\x1b" not in "".join(lines)


def test_with_colours_the_background_darkens_with_the_share(printed: Lines) -> None:
    rows = {"0": {"q_proj": 0.0}, "1": {"q_proj": 0.3}, "2": {"q_proj": 1.0}}
    options = {"force_terminal": True, "color_system": "truecolor"}
    lines = printed(_data(rows), **options)
    matches = [re.search(r"^\d.*?48;2;(\d+);(\d+);(\d+)m", line) for line in lines]  # the first cell's background
    shades = [tuple(map(int, match.groups())) for match in matches if match]
    assert len(shades) == 3
    assert shades[0] == tables.FEW_ZEROS
    assert shades[2] == tables.ALL_ZEROS
    assert sum(shades[0]) > sum(shades[1]) > sum(shades[2])
    assert "\x1b[3" not in "".join(printed(_data(rows), no_color=True, **options))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 120, 30])
@pytest.mark.parametrize("kinds", [LLAMA, DEEPSEEK])
def test_columns_that_do_not_fit_go_below_and_none_is_cut(
    printed: Lines, kinds: list[str], width: int, encoding: str
) -> None:
    lines = printed(_data({str(layer): dict.fromkeys(kinds, 1.0) for layer in range(100, 128)}), encoding, width=width)
    assert max(map(len, lines[3:])) <= width
    assert "…" not in "".join(lines)
    ranges = [line for line in lines if line.startswith("100-127")]
    assert sum(line.count("100.0%") for line in ranges) == len(kinds)
    assert (len(ranges) == 1) == (kinds == LLAMA and width >= 80)
    for kind in kinds:
        assert any(kind.split(".")[-1] in line for line in lines)


def test_a_layer_without_a_kind_has_an_empty_cell(printed: Lines) -> None:
    rows = {"0": {"mlp.up_proj": 0.5}, "1": {"experts.up_proj": 0.5}}
    printed_rows = _rows(printed(_data(rows)))
    assert [len(row) for row in printed_rows] == [3, 3, 4]


def test_a_model_without_blocks_prints_no_map(printed: Lines) -> None:
    assert not _rows(printed(_data({})))


def test_a_mixture_of_experts_fits_beside_its_router(printed: Lines) -> None:
    kinds = [*LLAMA[:4], "gate", "experts.w1", "experts.w2", "experts.w3"]
    lines = printed(_data({str(layer): dict.fromkeys(kinds, 0.5) for layer in range(32)}))
    assert [row[0] for row in _rows(lines)] == ["0-31", "all"]
    assert max(map(len, lines)) <= 80


def test_the_suggested_command_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "my run"
    (run / "sub_adapter").mkdir(parents=True)
    tables.print_summary({"models": []}, run)
    command = capsys.readouterr().out.partition("Try it: ")[2]
    assert shlex.split(command)[:5] == ["shears", "generate", f"{run}/sparse", "--adapter", f"{run}/sub_adapter"]


@pytest.mark.parametrize(
    ("names", "folders", "command"),
    [
        (
            ["dense", "sparse", "sparse + sub-adapter"],
            ["sub_adapter", "package"],
            "RUN/sparse --adapter RUN/sub_adapter",
        ),
        (["dense", "sparse", "merged"], ["sub_adapter", "package", "merged"], "RUN/merged"),
        (["dense", "sparse"], [], "RUN/sparse"),
        (["dense", "sparse"], ["sub_adapter"], "RUN/sparse"),  # of a run before its recipe lost the training
        ([], ["package"], "RUN/package"),
    ],
)
def test_the_suggested_command_uses_the_last_model_of_the_run(
    names: list[str], folders: list[str], command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
    figures = {"metric": "accuracy", "value": 0.5, "n": 2, "ci95": [0.1, 0.9], "sparsity": 0.5, "nonzeros": 3,
               "adapter_parameters": 0}  # fmt: skip
    tables.print_summary(
        {"task": "number", "data": "[bold]d[/b]", "models": [{"name": name, **figures} for name in names]}, tmp_path
    )
    output = " ".join(capsys.readouterr().out.split()).replace(str(tmp_path), "RUN")
    assert not names or "number on [bold]d[/b] (n = 2)" in output
    assert f'Try it: shears generate {command} --prompt "..."' in output


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [("acc_norm", 0.25, "25.0%"), ("exact_match,strict", 1.0, "100.0%"), ("word_perplexity", 12.345, "12.35"),
     ("bleu", 23.4567, "23.46"), ("f1", 0.4567, "0.4567"), ("mean of the first metrics", 124.94, "124.9")],
)  # fmt: skip
def test_only_shares_are_in_percent(metric: str, value: float, words: str) -> None:
    assert tables.figure({"metric": metric, "value": value, "ci95": [value, value]}) == (words, f"{words} to {words}")


def test_the_strict_reading_cut_answers_and_questions_seen_in_training_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"metric": "accuracy", "value": 0.5, "n": 1319, "ci95": [0.112, 0.912], "sparsity": 0.5, "nonzeros": 1e8,
           "adapter_parameters": 1e7}  # fmt: skip
    strict = {"accuracy_strict": 0.409, "accuracy_strict_low": 0.1, "accuracy_strict_high": 0.8}
    seen = {**strict, "cut": 12.0, "seen_in_training": 3.0, "accuracy_unseen": 0.25}
    models = [{"name": "dense", **row}, {"name": "sparse + sub-adapter", **row, "details": seen}]
    file = io.StringIO()
    monkeypatch.setattr(tables, "console", Console(file=file, width=80, _environ={}))
    tables.print_summary({"task": "gsm8k", "data": "d", "models": models}, tmp_path)
    lines = file.getvalue().splitlines()
    table = lines[: next(number for number, line in enumerate(lines) if line.startswith("└")) + 1]
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)
    assert "strict" in "".join(table)
    assert "40.9%" in "".join(table)
    sentence = "3 of the 1,319 test questions stand in the training data of sparse + sub-adapter; on the others its "
    assert f"{sentence}accuracy is 25.0%." in lines
    assert "Answers cut at the longest length: sparse + sub-adapter 12 of 1,319." in lines


def test_missing_values_are_not_printed(printed: Lines) -> None:
    """Embedded data have no hash, for example."""
    data = {"path": "searched", "kind": "search", "data": "arithmetic:validation", "data_sha256": None, "seed": 0}
    assert printed(data) == ["searched: search", "  data: arithmetic:validation", "  seed: 0"]


def test_names_in_square_brackets_are_printed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would read the brackets in metrics and folders as markup, or fail."""
    file = io.StringIO()
    monkeypatch.setattr(tables, "console", Console(file=file, width=120, _environ={}))
    figures = [{"task": task, "metric": "f1[/macro]", "value": 0.5, "ci95": None, "n": 2} for task in ("a", "b")]
    tables.print_evaluation("model", {**figures[0], "figures": figures})
    tables.print_plan(RunPlan("runs/[/old]/base", Path("runs/[new]"), 1_000_000, []))
    output = file.getvalue()
    assert output.count("f1[/macro]") == 3
    assert "runs/[/old]/base, 1.0 M weights" in output
    assert "runs/[new]" in output


def test_the_curve_over_ranks_has_a_row_for_each_and_the_area_below(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(tables, "console", Console(file=file, width=120, _environ={}))
    gap = {"value": -0.055, "ci95": [-0.1, 0.0125], "p_holm": 0.0404}
    points = [
        {"rank": rank, "parameters": 1000 * rank, "value": value, "ci95": [0.3, 0.6], "difference": difference}
        for rank, value, difference in ((32, 0.5, None), (8, 0.4, gap))
    ]
    points[0] |= {"n": 200, "details": {"cut": 7.0}}
    curve = {"aurac": 0.4512, "aurac_ci95": [0.4, 0.5], "points": points}
    tables.print_evaluation(
        "model", {"task": "gsm8k", "metric": "accuracy", "value": 0.5, "ci95": [0.3, 0.6], "n": 200, "curve": curve}
    )
    output = file.getvalue()
    [line] = [line for line in output.splitlines() if "8,000" in line]
    assert re.sub(r"[^\S ]|[|\u2502]", "", line).split() == (
        ["8", "8,000", "40.0%", "30.0%", "to", "60.0%", "-5.5", "(-10.0", "to", "+1.2)", "0.040"]
    )
    assert "area under the curve (AURAC) 45.1% (40.0% to 50.0%), 2 ranks" in output
    assert "Answers cut at the longest length: rank 32 7 of 200." in output


@pytest.mark.parametrize(
    ("lead", "lines"),
    [
        (
            {"against": "dense-lora", "untrained": False},
            ["sparse + sub-adapter minus dense-lora:", "  -3.0 points, 95 % interval -9.8 to +3.9",
             "  of 100 questions, 7 right only by the first and 10 only by the second"],
        ),
        (
            {"against": "dense", "untrained": True},
            ["sparse + sub-adapter minus dense, which was not trained on the task:",
             "  -3.0 points, 95 % interval -9.8 to +3.9",
             "  of 100 questions, 7 right only by the first and 10 only by the second",
             "  for a trained one to compare with: --set evaluate.baselines=dense-lora"],
        ),
        (
            {"against": "dense-lora", "untrained": False, "metric": "perplexity", "values": [20, 30.5],
             "difference": None},
            ["sparse + sub-adapter: perplexity 20.00, against 30.50 of dense-lora."],
        ),
    ],
)  # fmt: skip
def test_the_summary_of_a_run_begins_with_its_difference(
    lead: dict[str, Any], lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"name": "dense", "metric": "accuracy", "value": 0.5, "n": 2, "ci95": [0.1, 0.9], "sparsity": 0.5,
           "nonzeros": 3, "adapter_parameters": 0}  # fmt: skip
    difference = {"n": 100, "value": -0.03, "ci95": [-0.098, 0.039], "won": 7, "lost": 10, "p": 0.5}
    whole = {"name": "sparse + sub-adapter", "metric": "accuracy", "values": [0.8, 0.83], "difference": difference}
    summary = {"task": "number", "data": "d", "models": [row], "lead": {**whole, **lead}}
    tables.print_summary(summary, tmp_path)
    assert capsys.readouterr().out.splitlines()[: len(lines)] == lines
    tables.print_summary({key: value for key, value in summary.items() if key != "lead"}, tmp_path)  # of an old run
    assert "points" not in capsys.readouterr().out

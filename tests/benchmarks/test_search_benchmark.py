"""The benchmark of cheap evaluations, on a tiny super-adapter: its arms agree, its tables are whole."""

import random

import pytest
from benchmarks.search import INDIFFERENT, NAIVE, PREDICTED, PREFIX, RACING, climb, climb_report, decode

from shears.config import SearchConfig
from shears.data.examples import to_example
from shears.searching.measure.validation import loss_evaluator
from tests.searching.adapters import make_rows, make_super_adapter

SETTINGS = SearchConfig(
    data="unused", task="number", precision="fp32", device="cpu", batch_size=16, max_evaluations=15, max_new_tokens=4,
    cache_budget="1GB", race_error=0.05,
)  # fmt: skip
WHOLE = SETTINGS.model_copy(update={"cache_budget": "0", "race_error": 0.0})


def test_all_arms_climb_and_prefixes_run_fewer_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    adapter, rows = make_super_adapter(), make_rows(140)
    naive, climbs = climb(adapter, rows, SETTINGS, every=2)
    prefix, racing, predicted, indifferent = climbs
    assert naive.runs == round(15 / 8 * 8 * 4 * (2 + 2 + 3 + 5))  # the blocks of each part's batches
    assert prefix.runs < 0.9 * naive.runs
    assert racing.runs < prefix.runs or racing.history != prefix.history
    assert predicted.history[:1] == indifferent.history[:1] == prefix.history[:1]
    lines = list(climb_report(naive, climbs, len(rows), loss_evaluator(adapter, rows, WHOLE)))
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:7]] == [NAIVE, PREFIX, RACING, PREDICTED, INDIFFERENT]
    assert len(lines) == 12
    assert capsys.readouterr().out.count("naive") == 16


def test_a_raced_climb_alone_has_its_baseline() -> None:
    adapter, rows = make_super_adapter(), make_rows(140)
    naive, climbs = climb(adapter, rows, SETTINGS, every=5, names=[INDIFFERENT])
    assert [each.name for each in climbs] == [INDIFFERENT]
    assert naive.runs == round(15 / 3 * 3 * 4 * (2 + 2 + 3 + 5))
    whole = loss_evaluator(adapter, rows, WHOLE)
    lines = list(climb_report(naive, climbs, len(rows), whole, naive_loss=0.0))
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:4]] == [NAIVE, INDIFFERENT]
    assert lines[-1].endswith("the naive climb's loss of 0.00000 is reached (by estimate) after None evaluations")


def test_generation_in_one_batch_gives_the_same_answers() -> None:
    adapter, generator = make_super_adapter(), random.Random(0)
    rows = [{"prompt": "1" * generator.randint(1, 9), "completion": " 1", "answer": n} for n in range(20)]
    lines = list(decode(adapter, [to_example(row, "question", adapter.tokenizer) for row in rows], SETTINGS, 3))
    assert lines[-1].endswith("differs 0")

"""The benchmark of cheap evaluations, on a tiny super-adapter: its arms agree, its tables are whole."""

import random

from benchmarks.search import NAIVE, PREFIX, climb, climb_report, decode

from shears.config import SearchConfig
from shears.data.examples import to_example
from tests.searching.adapters import make_rows, make_super_adapter

SETTINGS = SearchConfig(
    data="unused", task="number", precision="fp32", device="cpu", batch_size=16, max_evaluations=15, max_new_tokens=4,
    cache_budget="1GB",
)  # fmt: skip


def test_common_beginnings_run_fewer_blocks_than_whole_forwards() -> None:
    arms, history = climb(make_super_adapter(), make_rows(140), SETTINGS, every=2)
    assert len(history) == 15
    assert arms[NAIVE].runs == 15 * 4 * 9  # the blocks of all batches of 16 rows
    assert arms[PREFIX].runs < 0.9 * arms[NAIVE].runs
    lines = list(climb_report(arms, history))
    assert [line.split(" | ")[:2] for line in lines[1:3]] == [["| naive", "15"], ["| prefix", "15"]]


def test_generation_in_one_batch_gives_the_same_answers() -> None:
    adapter, generator = make_super_adapter(), random.Random(0)
    rows = [{"prompt": "1" * generator.randint(1, 9), "completion": " 1", "answer": n} for n in range(20)]
    lines = list(decode(adapter, [to_example(row, "question", adapter.tokenizer) for row in rows], SETTINGS, 3))
    assert lines[-1].endswith("differs 0")

"""The benchmark of cheap evaluations, on a tiny super-adapter: its arms agree, its tables are whole."""

from benchmarks.search import NAIVE, PREFIX, climb, climb_report

from shears.config import SearchConfig
from tests.searching.adapters import make_rows, make_super_adapter

SETTINGS = SearchConfig(
    data="unused", precision="fp32", device="cpu", batch_size=16, max_evaluations=15,
    cache_budget="1GB",
)  # fmt: skip


def test_common_beginnings_run_fewer_blocks_than_whole_forwards() -> None:
    arms, history = climb(make_super_adapter(), make_rows(140), SETTINGS, every=2)
    assert len(history) == 15
    assert arms[NAIVE].runs == 15 * 4 * 9  # the blocks of all batches of 16 rows
    assert arms[PREFIX].runs < 0.9 * arms[NAIVE].runs
    lines = list(climb_report(arms, history))
    assert [line.split(" | ")[:2] for line in lines[1:3]] == [["| naive", "15"], ["| prefix", "15"]]

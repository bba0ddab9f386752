"""What the benchmarks measure with is right: peaks are seen, and every benchmark that a page names exists."""

import re
from pathlib import Path

import pytest
from benchmarks.memory import peak_memory

from benchmarks import memory

MB = 1_000_000
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("source", ["VmHWM", "VmRSS, sampled"])
def test_a_peak_is_seen_although_its_memory_is_free_again(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def held(size: int) -> str:
        return f"held = bytearray({size}); held[::4096] = bytes(len(held[::4096])); time.sleep(0.2); del held"

    if source != "VmHWM":  # where the kernel's peak cannot be reset
        unwritable = "import pathlib; memory.CLEAR = pathlib.Path('/nowhere/clear_refs')"
        monkeypatch.setattr(memory, "CHILD", f"from benchmarks import memory; {unwritable}; memory._child()")
    usage = peak_memory("import time\n" + held(300 * MB), held(100 * MB))
    assert usage.source == source
    assert 99 * MB < usage.peak < 110 * MB
    assert 0.1 < usage.seconds < 60
    assert 0 < usage.baseline < 100 * MB


def test_imports_and_prints_are_not_part_of_the_work_and_failures_say_why() -> None:
    assert peak_memory("import json", "print('noise')").peak < 5 * MB
    assert peak_memory("import torch", "torch.ones(10)").peak < 20 * MB
    with pytest.raises(RuntimeError, match="must exit with 0, got 1: (.|\n)*ZeroDivisionError"):
        peak_memory("zero = 0", "1 / zero")


def test_every_benchmark_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.yaml")]
    named = {name for page in pages for name in re.findall(r"benchmarks[./](\w+)", page.read_text())}
    assert sorted(named - {path.stem for path in (ROOT / "benchmarks").iterdir()}) == []

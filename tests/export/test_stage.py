"""Every export format is an entry of FORMATS; `shears export` prints what it wrote and the next command."""

import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

from shears.cli import main
from shears.config.export import FORMAT_OF_RECORD, FORMATS
from tests.export.made import half_sparse, super_adapter


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_a_function(name: str) -> None:
    assert callable(resolve_name(FORMATS[name].writer))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_with_one_record_write_one_kind_of_folder(name: str) -> None:
    form = FORMATS[name]
    other = FORMAT_OF_RECORD[form.record]
    assert (form.holds, form.called, form.folder, form.title) == (other.holds, other.called, other.folder, other.title)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "out: PEFT adapter. Next: shears evaluate SPARSE --adapter out --task"),
        (["--format", "merged"], "out: one model, 0.0% zeros. Next: shears evaluate out --task"),
        (["--format", "merged", "--model", "moved"], "out: one model, 0.0% zeros. Next: shears evaluate out --task"),
    ],
    ids=str,
)
def test_the_last_line_names_the_next_verb(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    super_adapter(tmp_path / "super", half_sparse(tmp_path / "base"))
    if "moved" in words:
        (tmp_path / "base").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["shears", "export", "super", "out", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert line in capfd.readouterr().out

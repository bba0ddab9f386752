"""Every export format is an entry of FORMATS."""

from pkgutil import resolve_name

import pytest

from shears.config.export import FORMAT_OF_RECORD, FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_names_a_function(name: str) -> None:
    assert callable(resolve_name(FORMATS[name].writer))


@pytest.mark.parametrize("name", FORMATS)
def test_formats_with_one_record_write_one_kind_of_folder(name: str) -> None:
    form = FORMATS[name]
    other = FORMAT_OF_RECORD[form.record]
    assert (form.holds, form.called, form.folder, form.title) == (other.holds, other.called, other.folder, other.title)

"""The committed pages of verbs and recipe keys are what the code makes."""

from docs.make_reference import FOLDER, pages


def test_the_pages_of_verbs_and_recipe_keys_are_those_of_the_code() -> None:
    for name, text in pages().items():
        assert (FOLDER / name).read_text() == text, "run `make reference`"

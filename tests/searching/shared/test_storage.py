"""Storages by URL: what can be opened, what is said where it cannot, and never a password."""

import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.study import StudyDirection

from shears.config import Recipe, SearchConfig
from shears.config.fields import hide_passwords
from shears.errors import InputError
from shears.runs import stages
from shears.searching.shared.storage import PASSWORD, _completed, open_storage, without


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("mysql://me:se/cr?et@host/db", "mysql://me:***@host/db"),
        ("postgresql://me:half@secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql:///db?host=/run&password=secret", "postgresql:///db?host=/run&password=***"),
        ("mysql://h/db?PASSWD=secret&x=1", "mysql://h/db?PASSWD=***&x=1"),
        ("cannot open postgresql://me:secret@host/db: no", "cannot open postgresql://me:***@host/db: no"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("journal:///tmp/study.log", "journal:///tmp/study.log"),
    ],
)
def test_passwords_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown
    assert hide_passwords(shown) == shown


def test_a_password_alone_in_what_a_driver_says_is_hidden_too() -> None:
    assert without("no entry for secret at postgresql://me:secret@h/d", "", "secret") == (
        "no entry for *** at postgresql://me:***@h/d"
    )


def test_what_is_recorded_of_a_search_lacks_the_password_and_what_runs_has_it() -> None:
    config = SearchConfig(data="x.jsonl", storage="postgresql://me:secret@host/db")
    assert config.storage == "postgresql://me:secret@host/db"
    assert config.model_dump(mode="json")["storage"] == "postgresql://me:***@host/db"
    assert "secret" not in config.model_dump_json() + repr(config) + str(config)


def test_a_run_searches_with_the_password_and_records_it_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, given = "postgresql://me:secret@host/db", list[str]()

    def search(adapter: Path, output: Path, **config: str) -> Path:
        given.append(config["storage"])
        return output

    monkeypatch.setattr(stages, "search", search)
    parts = {"train": {"data": "x.jsonl"}, "search": {"data": "y.jsonl", "storage": url}}
    recipe = Recipe.model_validate({"model": "m", **parts})
    stage = next(stage for stage in stages.stages_of(recipe, tmp_path) if stage.name == "search")
    stage.make()
    assert given == [url]
    assert stage.config["storage"] == "postgresql://me:***@host/db"
    assert "secret" not in str(recipe.model_dump(mode="json"))


@pytest.mark.parametrize("given", ["postgresql://me@host/db", "postgresql://me:***@host/db"])
def test_a_password_comes_from_the_environment(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = sqlalchemy.make_url(given)
    assert _completed(url).password is None, "then the database's client looks in places of its own"
    monkeypatch.setenv(PASSWORD, "secret")
    assert _completed(url).password == "secret"
    assert _completed(sqlalchemy.make_url("postgresql://me:mine@host/db")).password == "mine"


@pytest.mark.parametrize(
    ("given", "driver"),
    [("postgres", "psycopg"), ("postgresql", "psycopg"), ("mysql", "pymysql"), ("mariadb", "pymysql")],
)
def test_databases_have_the_drivers_that_the_extras_install(given: str, driver: str) -> None:
    assert _completed(sqlalchemy.make_url(f"{given}://me@host/db?host=/run")).get_driver_name() == driver
    chosen = sqlalchemy.make_url("postgresql+asyncpg://me@host/db")
    assert _completed(chosen).get_driver_name() == "asyncpg"


def refused(url: str) -> str:
    with pytest.raises(InputError) as error, open_storage(url):
        pass
    return str(error.value)


@pytest.mark.parametrize(("scheme", "module"), [("postgresql", "psycopg"), ("mysql", "pymysql")])
def test_a_missing_driver_is_named_with_what_installs_it(
    scheme: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = refused(f"{scheme}://me:secret@host/db")
    assert f"pip install 'shears-llm[{scheme}]'" in message
    assert "secret" not in message


def test_a_server_that_is_not_there_is_said_in_one_line_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    message = refused(f"postgresql://me:secret@/db?host={tmp_path}")
    assert message.startswith(
        f"storage must be a database URL that can be opened, got postgresql://me:***@/db?host={tmp_path}"
    )
    assert "secret" not in message
    assert "\n" not in message


@pytest.mark.parametrize("url", ["journal://study.log", "journal://", "journal:///no/such/folder/study.log"])
def test_a_journal_is_an_absolute_file_in_a_folder_that_is_there(url: str) -> None:
    assert "a journal must be journal:///ABSOLUTE/FILE" in refused(url)


NO_JOURNALS = ["not a journal\nat all\n", "my only copy of the notes", '["a list"]', "[1]\n", "3\n"]
OF_UNKNOWN_LINES = ['{"op_code":99,"worker_id":"a"}\n', '{"op_code":0,"worker_id":"a"}\n']


@pytest.mark.parametrize("content", [None, *NO_JOURNALS, *OF_UNKNOWN_LINES])
def test_a_folder_or_a_file_of_something_else_is_no_journal_and_stays(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    assert "must be a journal file that can be opened" in refused(f"journal://{path}")
    assert path.is_dir() or path.read_text() == content


@pytest.mark.parametrize("torn", ['{"op_code":2,"study', "", '{"op_code"'])
def test_a_line_of_a_journal_that_a_killed_worker_left_half_written_is_cut_off(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    with open_storage(f"journal://{path}") as storage:
        study = storage.create_new_study([StudyDirection.MINIMIZE], "search")
        storage.set_study_user_attr(study, "key", "before")
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    with open_storage(f"journal://{path}") as storage:
        storage.set_study_user_attr(study, "key", "after")
    assert path.read_bytes().startswith(whole)
    with open_storage(f"journal://{path}") as storage:
        assert storage.get_study_user_attrs(study) == {"key": "after"}


def test_sqlite_lets_one_of_two_end_a_trial(tmp_path: Path) -> None:
    """Without locking the file for a transaction, both would read a running trial and end it."""
    url = f"sqlite:///{tmp_path}/study.db"
    with open_storage(url) as one, open_storage(url) as other:
        study = one.create_new_study([StudyDirection.MINIMIZE], "search")
        trial = one.create_new_trial(study)
        assert other.set_trial_state_values(trial, optuna.trial.TrialState.FAIL)
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            one.set_trial_state_values(trial, optuna.trial.TrialState.COMPLETE, [1.0])
        engine = one._backend.engine
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
            assert connection.connection.driver_connection.in_transaction


def test_a_journal_whose_first_line_is_half_written_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "study.log").write_text('{"op_code":0,"work')
    with open_storage(f"journal://{tmp_path}/study.log") as storage:
        assert storage.create_new_study([StudyDirection.MINIMIZE], "search") == 0

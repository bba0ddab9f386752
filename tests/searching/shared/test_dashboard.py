"""optuna-dashboard opens the study of a search, on whatever storage."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from shears.searching.shared.storage import open_storage
from tests.searching.shared.test_workers import PLAN, URLS, location_of, work

dashboard = pytest.importorskip("optuna_dashboard", reason="pip install optuna-dashboard")


def get(app: Any, path: str) -> tuple[str, Any]:
    """The status and the JSON that the dashboard's server answers."""
    said = list[str]()
    environment = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
                   "SERVER_NAME": "localhost", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}  # fmt: skip
    body = b"".join(app(environment, lambda status, headers, *_: said.append(status)))
    return said[0], json.loads(body)


@pytest.mark.parametrize("storage", URLS)
def test_the_dashboard_lists_the_study_and_its_trials(storage: str, tmp_path: Path) -> None:
    place = location_of(storage, tmp_path, "one")
    evaluations = work(place, PLAN, lambda ranks: None)
    assert place.url is not None
    with open_storage(place.url) as opened:
        app = dashboard.wsgi(opened)
        status, studies = get(app, "/api/studies")
        assert status == "200 OK"
        (study,) = studies["study_summaries"]
        assert study["study_name"] == "search"
        status, detail = get(app, f"/api/studies/{study['study_id']}")
        assert status == "200 OK"
        assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * len(evaluations)

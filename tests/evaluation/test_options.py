"""Options that cannot act are refused: an adapter beside a package, by whatever takes an adapter."""

from collections.abc import Callable
from typing import Any

import pytest

from shears.errors import InputError
from shears.evaluation.run import evaluate
from shears.models.load import load_with_adapter
from shears.runtime.loading import load
from shears.serving.server import serve
from tests.export.made import half_sparse, super_adapter
from tests.export.packages import package

TASKS = ("perplexity", "choices", "number", "equation")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("made")
    adapter = super_adapter(folder / "super", half_sparse(folder / "base"))
    return str(package(adapter, folder / "package")), str(adapter)


def _measured(task: str, **options: Any) -> Callable[[str, str], object]:
    return lambda model, adapter: evaluate(
        model, adapter=adapter, task=task, data="arithmetic:test", limit=1, **options
    )


@pytest.mark.parametrize(
    "use",
    [
        *(_measured(task, backend=backend) for task in TASKS for backend in ("auto", "transformers")),
        *(_measured("number", **option) for option in ({"ranks": "all"}, {"precision": "fp32"}, {"dtype": "bf16"})),
        load,
        load_with_adapter,
        lambda model, adapter: serve(model, adapter, port=0),
    ],
)
def test_an_adapter_beside_a_package_is_refused_not_ignored(
    use: Callable[[str, str], object], made: tuple[str, str]
) -> None:
    with pytest.raises(InputError, match=r"a package comes with its adapter, got the adapter .*super beside"):
        use(*made)

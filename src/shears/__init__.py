"""shears: sparse fine-tuning that stays sparse. Public names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shears.records.version import __version__

if TYPE_CHECKING:
    from shears.adapt.elastic import ElasticAdapter, make_elastic
    from shears.adapt.load import load_super_adapter
    from shears.adapt.prepare import build_space
    from shears.adapt.sampling import NLSCallback
    from shears.adapt.space import RankConfig, SearchSpace
    from shears.adapt.train import train
    from shears.errors import InputError
    from shears.evaluation.run import evaluate
    from shears.export.stage import export_adapter
    from shears.export.unpack import unpack
    from shears.inspection import inspect
    from shears.models.fetching import fetch
    from shears.publishing import push
    from shears.report.compare import compare
    from shears.report.page import write_report
    from shears.runs.pipeline import run
    from shears.runs.plan import plan
    from shears.runtime.speed import bench
    from shears.searching.stage import run_search, search
    from shears.serving.server import serve
    from shears.sparsity.prune import sparsify_model
    from shears.sparsity.stage import sparsify

_MODULES = {
    "ElasticAdapter": "adapt.elastic",
    "InputError": "errors",
    "NLSCallback": "adapt.sampling",
    "RankConfig": "adapt.space",
    "SearchSpace": "adapt.space",
    "bench": "runtime.speed",
    "compare": "report.compare",
    "build_space": "adapt.prepare",
    "evaluate": "evaluation.run",
    "export_adapter": "export.stage",
    "fetch": "models.fetching",
    "inspect": "inspection",
    "load_super_adapter": "adapt.load",
    "make_elastic": "adapt.elastic",
    "plan": "runs.plan",
    "push": "publishing",
    "run": "runs.pipeline",
    "run_search": "searching.stage",
    "search": "searching.stage",
    "serve": "serving.server",
    "sparsify": "sparsity.stage",
    "sparsify_model": "sparsity.prune",
    "train": "adapt.train",
    "unpack": "export.unpack",
    "write_report": "report.page",
}
__all__ = [
    "ElasticAdapter",
    "InputError",
    "NLSCallback",
    "RankConfig",
    "SearchSpace",
    "__version__",
    "bench",
    "build_space",
    "compare",
    "evaluate",
    "export_adapter",
    "fetch",
    "inspect",
    "load_super_adapter",
    "make_elastic",
    "plan",
    "push",
    "run",
    "run_search",
    "search",
    "serve",
    "sparsify",
    "sparsify_model",
    "train",
    "unpack",
    "write_report",
]


_FOLDERS = ("adapt", "data", "errors", "evaluation", "export", "runtime", "searching", "serving", "sparsity")


def __getattr__(name: str) -> Any:
    """Return a public name or folder, imported now, so that `import shears` alone does not import torch."""
    if name in _FOLDERS:
        return import_module(f"shears.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'shears' has no attribute {name!r}")
    return getattr(import_module(f"shears.{_MODULES[name]}"), name)

"""shears: sparse fine-tuning that stays sparse. Public names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shears.adapt.elastic import ElasticAdapter as ElasticAdapter
    from shears.adapt.elastic import NLSCallback as NLSCallback
    from shears.adapt.groups import build_space as build_space
    from shears.adapt.space import RankConfig as RankConfig
    from shears.adapt.space import SearchSpace as SearchSpace
    from shears.adapt.super_adapter import load_super_adapter as load_super_adapter
    from shears.adapt.train import train as train
    from shears.checkpoints.inspection import inspect as inspect
    from shears.errors import InputError as InputError
    from shears.evaluation.run import evaluate as evaluate
    from shears.export.peft import export_adapter as export_adapter
    from shears.records.artifacts import __version__ as __version__
    from shears.records.publishing import push as push
    from shears.report.page import compare as compare
    from shears.report.page import write_report as write_report
    from shears.runs.compress import compress as compress
    from shears.runs.pipeline import run as run
    from shears.runs.plan import plan as plan
    from shears.runtime.speed import bench as bench
    from shears.runtime.speed import environment as environment
    from shears.searching.study import search as search
    from shears.serving import serve as serve
    from shears.sparsity.prune import sparsify_model as sparsify_model
    from shears.sparsity.sparsify import sparsify as sparsify
    from shears.training.heal import heal as heal
    from shears.writing.written import write as write

_MODULES = {
    "ElasticAdapter": "adapt.elastic",
    "InputError": "errors",
    "NLSCallback": "adapt.elastic",
    "RankConfig": "adapt.space",
    "SearchSpace": "adapt.space",
    "__version__": "records.artifacts",
    "bench": "runtime.speed",
    "build_space": "adapt.groups",
    "compare": "report.page",
    "compress": "runs.compress",
    "environment": "runtime.speed",
    "evaluate": "evaluation.run",
    "export_adapter": "export.peft",
    "heal": "training.heal",
    "inspect": "checkpoints.inspection",
    "load_super_adapter": "adapt.super_adapter",
    "plan": "runs.plan",
    "push": "records.publishing",
    "run": "runs.pipeline",
    "search": "searching.study",
    "serve": "serving",
    "sparsify": "sparsity.sparsify",
    "sparsify_model": "sparsity.prune",
    "train": "adapt.train",
    "write": "writing.written",
    "write_report": "report.page",
}
__all__ = list(_MODULES)
_FOLDERS = ("adapt", "data", "errors", "evaluation", "export", "runtime", "searching", "serving", "sparsity")


def __getattr__(name: str) -> Any:
    """Return a public name or folder, imported on use, so that `import shears` imports no torch."""
    if name in _FOLDERS:
        return import_module(f"shears.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'shears' has no attribute {name!r}")
    return getattr(import_module(f"shears.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names and folders, imported or not."""
    return sorted({*globals(), *__all__, *_FOLDERS})

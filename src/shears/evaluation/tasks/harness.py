"""Tasks of lm-eval on a loaded model, in this process; figures and records in our form.

YAML tasks of a user's folder are data, unless the user lets them run code: lm-eval imports what
`!function` and `class` name, loads unknown metrics as scripts, and renders templates without a
sandbox.
"""

import difflib
import logging
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml
from jinja2 import BaseLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.data.prompts import question_id, question_of
from shears.errors import InputError, first_line, install_hint
from shears.evaluation.records import Evaluation, Record
from shears.evaluation.statistics import Z95, wilson_interval
from shears.models.devices import DTYPES, device_of, resolved_precision
from shears.records.figures import is_share

logger = logging.getLogger(__name__)

TASKS = Path(__file__).parent / "lm_eval"
"""The folder of shears' own tasks; `lm_eval --include_path` takes it too."""
QUESTION_IDS = "question_ids"
"""The field of a record with the ids under which training data are searched for its question."""
Figure = dict[str, Any]
ALLOWED = "SHEARS_TASK_CODE"  # in the environment: a recipe, which may be a stranger's, cannot set it
YAML_TAG = "tag:yaml.org,2002:"
PYTHON_TAG = f"{YAML_TAG}python"
RUNNING_ERRORS = (AssertionError, ValueError, OSError)
"""Raised by lm-eval for a missing data set, or for texts longer than the model's context."""
TASK_ERRORS = (LookupError, TypeError, AttributeError, ImportError, TemplateError)
"""Raised by lm-eval for a YAML that names a missing key, split, column, metric or function."""


def check_installed() -> None:
    """Raise InputError, with what to install, without lm-eval."""
    if find_spec("lm_eval") is None:
        raise InputError(f"harness needs lm-eval, which is not installed; {install_hint('harness')}")


def run_harness(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    """Return the figures of lm-eval's tasks, equal to those of `lm_eval --model hf`.

    The value is the first metric of a task, or the mean of those of several. InputError without
    lm-eval, for a task that it does not know or that fails, and for tasks that name code.
    """
    check_installed()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _manager(config)
    # plain lm_eval computes in the model's own number format, without the autocast that it has
    precision = resolved_precision("fp32" if config.precision == "auto" else config.precision, device_of(model))
    loaded = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=config.batch_size,
        mixed_precision_dtype=None if precision == "fp32" else DTYPES[precision],
    )
    trusted = config.include_path is None or may_run_code()
    try:
        with nullcontext() if trusted else sandboxed_templates():
            results: Any = simple_evaluate(loaded, tasks=list(config.harness), task_manager=manager, limit=config.limit)
    except (*RUNNING_ERRORS, *TASK_ERRORS) as error:
        kind = f"{type(error).__name__}: " if isinstance(error, TASK_ERRORS) else ""  # a KeyError's text is a bare key
        message = f"{kind}{first_line(error)}"
        raise InputError(f"lm-eval must be able to run {', '.join(config.harness)}, got {message}") from error
    figures = [figure for task in results["samples"] for figure in task_figures(task, results)]
    records = [record for task, samples in results["samples"].items() for record in task_records(task, samples)]
    return summary(figures, records)


def _manager(config: EvaluateConfig) -> Any:
    """Return lm-eval's index of tasks; its own are indexed only if one of them is named."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks import __file__ as tasks_of_lm_eval

    metadata = {"shears_data": config.data} | ({"shears_template": config.template} if config.template else {})
    paths = [str(TASKS), *([config.include_path] if config.include_path else [])]
    if config.include_path and not Path(config.include_path).is_dir():
        raise InputError(f"include_path must be a folder of YAML tasks, got {config.include_path}")
    if config.include_path and not may_run_code():
        refuse_code(Path(config.include_path), TASKS, Path(tasks_of_lm_eval).parent)
    for defaults in (False, True):
        manager = TaskManager(include_path=paths, include_defaults=defaults, metadata=metadata)
        unknown = [name for name in config.harness if name not in manager.all_tasks]
        if not unknown:
            return manager
    close = difflib.get_close_matches(unknown[0], manager.all_tasks, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"harness must name tasks of lm-eval or of include_path, got {unknown[0]!r}{hint}")


def task_figures(task: str, results: Mapping[str, Any]) -> list[Figure]:
    """Return value, stderr, number of samples and interval of each metric; None if unknown.

    A metric that is not a finite number ("N/A", lists) is left out with a warning.
    """
    metrics: Mapping[str, Any] = results["results"][task]
    figures = []
    for key, value in metrics.items():
        name, _, kind = key.partition(",")
        if not kind or name.endswith("_stderr"):
            continue
        samples = [sample for sample in results["samples"][task] if sample.get("filter", kind) == kind]
        if not isinstance(value, Real) or not math.isfinite(value):
            logger.warning("%s of %s is left out: it must be a finite number, got %s", name, task, value)
            continue
        stderr, ci95 = _uncertainty(samples, name, float(value), metrics.get(f"{name}_stderr,{kind}"))
        figures.append(
            {
                "task": task,
                "metric": name if kind == "none" else f"{name},{kind}",
                "value": float(value),
                "stderr": stderr,
                "n": len(samples),
                "ci95": ci95,
            }
        )
    return figures


def _uncertainty(
    samples: Sequence[Mapping[str, Any]], metric: str, value: float, stderr: object
) -> tuple[float | None, list[float] | None]:
    """Return the standard error and the 95 % interval of a metric, each None if unknown.

    Without lm-eval's standard error it is that of the samples, if the metric is their mean. The
    interval is Wilson's if all values are 0 or 1, else it follows from the standard error.
    """
    values = [sample.get(metric) for sample in samples]
    error = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
    if error is None:
        numbers = [float(each) for each in values if isinstance(each, int | float)]
        if len(numbers) >= max(len(values), 2) and math.isclose(statistics.fmean(numbers), value, abs_tol=1e-9):
            error = statistics.stdev(numbers) / math.sqrt(len(numbers))
    if all(each in (0, 1) for each in values):
        return error, list(wilson_interval(sum(map(bool, values)), len(values)))
    return error, None if error is None else [value - Z95 * error, value + Z95 * error]


def summary(figures: Sequence[Figure], records: Sequence[Record]) -> Evaluation:
    """Return the mean of the tasks' first metrics; InputError if there are none."""
    firsts = list({figure["task"]: figure for figure in reversed(figures)}.values())
    if not firsts:
        raise InputError("harness must give a finite figure, got none of any task; the model may be damaged")
    value = sum(figure["value"] for figure in firsts) / len(firsts)
    n = sum(figure["n"] for figure in firsts)
    if unknown := [figure["task"] for figure in firsts if figure["ci95"] is None]:
        logger.warning("tasks without an interval are left out of the interval of the mean: %s", ", ".join(unknown))
    if len(firsts) == 1:
        low, high = firsts[0]["ci95"] or (value, value)
    else:
        half = Z95 * math.sqrt(sum((figure["stderr"] or 0.0) ** 2 for figure in firsts)) / len(firsts)
        low, high = value - half, value + half
    names = sorted({figure["metric"] for figure in firsts})
    metric = names[0]
    if len(names) > 1:  # a mean of shares is called an accuracy, which is shown in percent
        mean = f"accuracy (mean of {', '.join(names)})"
        metric = mean if all(map(is_share, names)) else "mean of the first metrics"
    logger.info("harness: %s %.4f (%.4f to %.4f) over %d tasks", metric, value, low, high, len(firsts))
    return Evaluation("harness", metric, value, n, (low, high), list(records), figures=list(figures))


def task_records(task: str, samples: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Return a record for each example, of which lm-eval has a sample for each filter."""
    of_example: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        of_example[int(sample["doc_id"])].append(sample)
    values = [
        (name, sample.get("filter"), sample.get(name)) for sample in samples for name in sample.get("metrics", [])
    ]
    # a metric that is 1 for an example is no right answer if it is neither 0 nor 1 for another one
    binary = {key[:2] for key in values} - {key[:2] for key in values if key[2] not in (0, 1)}
    return [_record(task, of_example[number], binary) for number in sorted(of_example)]


def _record(task: str, samples: Sequence[Mapping[str, Any]], binary: Collection[tuple[str, object]]) -> Record:
    """Return the record of an example; its prediction is the first filter's.

    `correct` is the first binary metric, `correct_NAME` or `correct_NAME,FILTER` are the others.
    """
    bits = {
        f"{name},{each['filter']}" if len(samples) > 1 else name: bool(each[name])
        for each in samples
        for name in each.get("metrics", [])
        if (name, each.get("filter")) in binary
    }
    sample = samples[0]
    record: Record = {
        "index": int(sample["doc_id"]),
        "task": task,
        "id": str(sample["doc_hash"])[:16],
        "prompt": str(sample["arguments"][0][0]),
        "prediction": _prediction(sample),
        "answer": _plain(sample["target"]),
        QUESTION_IDS: _question_ids(sample),
    }
    for number, (name, bit) in enumerate(bits.items()):
        record["correct" if number == 0 else f"correct_{name}"] = bit
    return record


def _question_ids(sample: Mapping[str, Any]) -> list[str]:
    """Return the question's ids: of its row with and without choices, of its whole prompt."""
    row: Mapping[str, Any] = sample["doc"]
    alone = {name: value for name, value in row.items() if name != "choices"}
    texts = [question_of(row), question_of(alone), str(sample["arguments"][0][0])]
    return list(dict.fromkeys(question_id(text) for text in texts if text))


def _prediction(sample: Mapping[str, Any]) -> object:
    """Return the generated text, or the index of the likeliest of several choices."""
    responses = sample["filtered_resps"]
    if "acc_mutual_info" in sample.get("metrics", []):  # the second half scores the choices without the question
        responses = responses[: len(responses) // 2]
    if len(responses) == 1:
        return _plain(responses[0])
    return max(range(len(responses)), key=lambda number: float(responses[number][0]))


def _plain(value: Any) -> Any:
    """Return JSON data: None for numbers that are not finite, text for unknown types."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Integral):  # numpy's
        return int(value)
    return (float(value) if math.isfinite(value) else None) if isinstance(value, Real) else str(value)


def may_run_code() -> bool:
    """Tell whether the user lets tasks of any folder run code."""
    return os.environ.get(ALLOWED) == "1"


def refuse_code(folder: Path, *trusted: Path) -> None:
    """Raise InputError for a folder with a task that names code, itself or in an include.

    Files in `trusted` folders may be included. InputError too for a file that is no YAML.
    """
    for path in sorted(folder.rglob("*.yaml")):
        _check_yaml(path.resolve(), [place.resolve() for place in trusted], set())


def _check_yaml(path: Path, trusted: list[Path], seen: set[Path]) -> None:
    if path in seen or any(path.is_relative_to(place) for place in trusted):
        return
    seen.add(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} must be a YAML task, got {first_line(error)}; correct it") from None
    for code in _code_in(node, ""):
        raise InputError(
            f"a task must be data alone, {path} names {code[:100]}, which would run code; set {ALLOWED}=1 if you trust "
            "its folder as you trust a program"
        )
    for name in _included(node):
        _check_yaml((path.parent / name).resolve(), trusted, seen)


def _code_in(node: yaml.Node | None, key: str) -> Iterator[str]:
    """Yield what a YAML node, the value of a key, names of code."""
    if node is None:
        return
    if node.tag.startswith(PYTHON_TAG) or not node.tag.startswith(YAML_TAG):
        yield f"{node.tag} {node.value if isinstance(node, yaml.ScalarNode) else ''}"
    if key == "class":
        yield "a class"
    if key == "hf_evaluate" and str(node.value).lower() not in ("false", "no", "off"):
        yield "a metric of the hub"
    if key == "metric" and isinstance(node, yaml.ScalarNode) and not _is_known_metric(node.value):
        yield f"the metric {node.value} of the hub, because lm-eval has none of that name"
    for name, child in _children(node, key):
        yield from _code_in(child, name)


def _children(node: yaml.Node, key: str) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield "", name
            yield str(name.value), value
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield key, value


def _is_known_metric(name: str) -> bool:
    import lm_eval.api.metrics  # noqa: F401  # fills the registry
    from lm_eval.api.registry import metric_registry

    return name in metric_registry


def _included(node: yaml.Node | None) -> Iterator[str]:
    """Yield the files that a task includes."""
    for name, value in _children(node, "") if isinstance(node, yaml.MappingNode) else ():
        if name == "include":
            for entry in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                yield str(entry.value)


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """Let lm-eval render templates in jinja2's sandbox, away from attributes with code."""
    from lm_eval import utils

    before = utils.env
    utils.env = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
    utils.env.filters.update(before.filters)
    try:
        yield
    finally:
        utils.env = before

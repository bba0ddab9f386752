"""Tasks of lm-eval on a loaded model, in this process; its figures and samples in our own form."""

import difflib
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.data.questions import question_id, question_of
from shears.errors import InputError, first_line
from shears.evaluation.records import Evaluation, Record
from shears.evaluation.statistics import Z95, wilson_interval
from shears.models.devices import DTYPES, device_of, resolved_precision
from shears.records.measures import is_share

logger = logging.getLogger(__name__)

TASKS = Path(__file__).parent / "tasks"
"""Our own tasks, for `lm_eval --include_path` too."""
ASKED = "question_ids"
"""Of a record: what its question goes by where training data are searched for it."""
Figure = dict[str, Any]
RUNNING_ERRORS = (AssertionError, ValueError, OSError)
"""What lm-eval raises of a data set that is not there, or of texts longer than the model's context."""
TASK_ERRORS = (LookupError, TypeError, AttributeError, ImportError, TemplateError)
"""What it raises of a YAML with a key, split, column, metric or function that is not there."""


def run_harness(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    """Return the figures of lm-eval's tasks: those that `lm_eval --model hf` prints for the same model.

    The value is the first metric of a single task, the mean of the first metrics of several. InputError where lm-eval
    is missing, or does not know a task.
    """
    if find_spec("lm_eval") is None:
        raise InputError("harness needs lm-eval, which is not installed; pip install 'shears[harness]'")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _manager(config)
    loaded = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=config.batch_size,
        mixed_precision_dtype=_autocast_dtype(config.precision, device_of(model)),
    )
    try:
        results: Any = simple_evaluate(loaded, tasks=list(config.harness), task_manager=manager, limit=config.limit)
    except (*RUNNING_ERRORS, *TASK_ERRORS) as error:
        kind = f"{type(error).__name__}: " if isinstance(error, TASK_ERRORS) else ""  # a bare 'test' says little
        words = f"{kind}{first_line(error)}"
        raise InputError(f"lm-eval must be able to run {', '.join(config.harness)}, got {words}") from error
    figures = [figure for task in results["samples"] for figure in task_figures(task, results)]
    records = [record for task, samples in results["samples"].items() for record in _records(task, samples)]
    return summary(figures, records)


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return what lm-eval's own autocast is to compute in, which it opens around every forward, inside any of ours.

    None, which is none, for fp32, and for auto: the model's own numbers are what plain lm_eval computes in.
    """
    chosen = resolved_precision("fp32" if precision == "auto" else precision, device)
    return None if chosen == "fp32" else DTYPES[chosen]


def _manager(config: EvaluateConfig) -> Any:
    """Return lm-eval's index of tasks; of its own thousands only where they are asked for."""
    from lm_eval.tasks import TaskManager

    metadata = {"shears_data": config.data} | ({"shears_template": config.template} if config.template else {})
    paths = [str(TASKS), *([config.include_path] if config.include_path else [])]
    if config.include_path and not Path(config.include_path).is_dir():
        raise InputError(f"include_path must be a folder of YAML tasks, got {config.include_path}")
    for defaults in (False, True):
        manager = TaskManager(include_path=paths, include_defaults=defaults, metadata=metadata)
        unknown = [name for name in config.harness if name not in manager.all_tasks]
        if not unknown:
            return manager
    close = difflib.get_close_matches(unknown[0], manager.all_tasks, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise InputError(f"harness must name tasks of lm-eval or of include_path, got {unknown[0]!r}{hint}")


def task_figures(task: str, results: Mapping[str, Any]) -> list[Figure]:
    """Return every metric of a task: value, stderr, number of samples, interval; None for what is not known.

    A metric that is no finite number (lm-eval has "N/A" and lists, too) is left out, with a warning.
    """
    metrics: Mapping[str, Any] = results["results"][task]
    figures = []
    for key, value in metrics.items():
        name, _, kind = key.partition(",")
        if not kind or name.endswith("_stderr"):
            continue
        samples = [sample for sample in results["samples"][task] if sample.get("filter", kind) == kind]
        if not _is_finite(value):
            logger.warning("%s of %s is %s, no finite number: it is left out", name, task, value)
            continue
        stderr = metrics.get(f"{name}_stderr,{kind}")
        if isinstance(stderr, int | float) and math.isfinite(stderr):
            stderr = float(stderr)
        else:
            stderr = _standard_error(samples, name, float(value))
        bits = _bits(samples, name)
        figures.append(
            {
                "task": task, "metric": name if kind == "none" else f"{name},{kind}", "value": float(value),
                "stderr": stderr, "n": len(samples), "ci95": _interval(float(value), stderr, bits),
            }
        )  # fmt: skip
    return figures


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _bits(samples: Sequence[Mapping[str, Any]], metric: str) -> list[bool] | None:
    """Return a metric's value for each sample where all of them are 0 or 1."""
    values = [sample.get(metric) for sample in samples]
    return [bool(value) for value in values] if all(value in (0, 1) for value in values) else None


def _standard_error(samples: Sequence[Mapping[str, Any]], metric: str, value: float) -> float | None:
    """Return the standard error of a metric that is the mean of the samples' own, of which lm-eval gives none."""
    values = [sample.get(metric) for sample in samples]
    numbers = [float(each) for each in values if isinstance(each, int | float)]
    if len(numbers) < max(len(values), 2) or not math.isclose(statistics.fmean(numbers), value, abs_tol=1e-9):
        return None
    return statistics.stdev(numbers) / math.sqrt(len(numbers))


def _interval(value: float, stderr: float | None, bits: Sequence[bool] | None) -> list[float] | None:
    """Return the 95 % interval, None where nothing tells."""
    if bits is not None:
        return list(wilson_interval(sum(bits), len(bits)))
    half = Z95 * stderr if stderr is not None else math.nan
    return [value - half, value + half] if math.isfinite(half) else None


def summary(figures: Sequence[Figure], records: Sequence[Record]) -> Evaluation:
    """Return the evaluation whose value is the mean of the tasks' first metrics, each task counting once.

    InputError where no task has one.
    """
    firsts = list({figure["task"]: figure for figure in reversed(figures)}.values())
    if not firsts:
        raise InputError("harness must give a finite figure, got none of any task; the model may be damaged")
    value = sum(figure["value"] for figure in firsts) / len(firsts)
    n = sum(figure["n"] for figure in firsts)
    if unknown := [figure["task"] for figure in firsts if figure["ci95"] is None]:
        logger.warning("no interval is known of %s: it is left out of that of the value", ", ".join(unknown))
    if len(firsts) == 1:
        low, high = firsts[0]["ci95"] or (value, value)
    else:
        half = Z95 * math.sqrt(sum((figure["stderr"] or 0.0) ** 2 for figure in firsts)) / len(firsts)
        low, high = value - half, value + half
    metric = _name_of_mean({figure["metric"] for figure in firsts})
    logger.info("harness: %s %.4f (%.4f to %.4f) over %d tasks", metric, value, low, high, len(firsts))
    return Evaluation("harness", metric, value, n, (low, high), list(records), figures=list(figures))


def _name_of_mean(names: Collection[str]) -> str:
    """Return what the mean of metrics is called; a mean of shares is a share too, and read in percent."""
    if len(names) == 1:
        return next(iter(names))
    words = f"accuracy (mean of {', '.join(sorted(names))})"
    return words if all(map(is_share, names)) else "mean of the first metrics"


def _records(task: str, samples: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Return a record for each example, of which lm-eval has a sample for each of the task's filters."""
    of_example: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        of_example[int(sample["doc_id"])].append(sample)
    counted = _counted(samples)
    return [_record(task, of_example[number], counted) for number in sorted(of_example)]


def _counted(samples: Sequence[Mapping[str, Any]]) -> set[tuple[str, object]]:
    """Return the metrics, with their filters, that are 0 or 1 of every example: of others, 1 is no right answer."""
    values = [
        (name, sample.get("filter"), sample.get(name)) for sample in samples for name in sample.get("metrics", [])
    ]
    return {key[:2] for key in values} - {key[:2] for key in values if key[2] not in (0, 1)}


def _record(task: str, samples: Sequence[Mapping[str, Any]], counted: Collection[tuple[str, object]]) -> Record:
    """Return the samples of an example in our form, the first filter's text as its prediction.

    `correct` is the first that is counted, `correct_NAME` (of several filters, `correct_NAME,FILTER`) the others.
    """
    sample, several = samples[0], len(samples) > 1
    bits = {f"{name},{each['filter']}" if several else name: bool(each[name]) for each in samples
            for name in each.get("metrics", []) if (name, each.get("filter")) in counted}  # fmt: skip
    record: Record = {
        "index": int(sample["doc_id"]), "task": task, "id": str(sample["doc_hash"])[:16],
        "prompt": str(sample["arguments"][0][0]), "prediction": _prediction(sample), "answer": _plain(sample["target"]),
        ASKED: _asked(sample),
    }  # fmt: skip
    for number, (name, bit) in enumerate(bits.items()):
        record["correct" if number == 0 else f"correct_{name}"] = bit
    return record


def _asked(sample: Mapping[str, Any]) -> list[str]:
    """Return the ids a sample's question goes by: its row's, with its choices and without, and its whole prompt's."""
    row: Mapping[str, Any] = sample["doc"]
    alone = {name: value for name, value in row.items() if name != "choices"}
    texts = [question_of(row), question_of(alone), str(sample["arguments"][0][0])]
    return list(dict.fromkeys(question_id(text) for text in texts if text))


def _prediction(sample: Mapping[str, Any]) -> object:
    """Return the generated text, or the number of the likeliest of several choices."""
    responses = sample["filtered_resps"]
    if "acc_mutual_info" in sample.get("metrics", []):  # behind the choices, lm-eval asks for each without its question
        responses = responses[: len(responses) // 2]
    if len(responses) == 1:
        return _plain(responses[0])
    return max(range(len(responses)), key=lambda number: float(responses[number][0]))


def _plain(value: Any) -> Any:
    """Return a response or a target as JSON can hold it: None for numbers that are not finite, also inside a list.

    What a task makes of its rows may be anything: what JSON has no form for is written out.
    """
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Integral):  # numpy's
        return int(value)
    return (float(value) if math.isfinite(value) else None) if isinstance(value, Real) else str(value)

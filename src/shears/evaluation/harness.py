"""Tasks of lm-eval on a loaded model, in this process; figures and records in our form."""

import logging
import math
from collections.abc import Mapping
from importlib.util import find_spec
from numbers import Real
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.data.templates import question_id, question_of
from shears.errors import InputError, install_hint, option
from shears.evaluation.evaluated import Evaluation, Record
from shears.evaluation.statistics import Z95, wilson_interval
from shears.models.devices import DTYPES, device_of, resolved_precision
from shears.records.figures import is_share

logger = logging.getLogger(__name__)
Figure = dict[str, Any]


def check_installed() -> None:
    if find_spec("lm_eval") is None:
        raise InputError(f"harness needs lm-eval, which is missing; {install_hint('harness')}")


def run_harness(model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: EvaluateConfig) -> Evaluation:
    """Return the figures of lm-eval's tasks, equal to those of `lm_eval --model hf`.

    The value is the first metric of a task, or the mean of those of several.
    """
    check_installed()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # plain lm_eval computes in the model's own number format, without the autocast that it has
    precision = resolved_precision("fp32" if config.precision == "auto" else config.precision, device_of(model))
    loaded = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=config.batch_size,
        mixed_precision_dtype=None if precision == "fp32" else DTYPES[precision],
    )
    with option(f"harness {','.join(config.harness)}"):
        results: Any = simple_evaluate(loaded, tasks=list(config.harness), limit=config.limit)
    figures = [figure for task in results["samples"] for figure in task_figures(task, results)]
    firsts = list({figure["task"]: figure for figure in reversed(figures)}.values())
    if not firsts:
        raise InputError("lm-eval must return a finite metric, got none; the model may be damaged")
    value = sum(figure["value"] for figure in firsts) / len(firsts)
    half = Z95 * math.sqrt(sum((figure["stderr"] or 0.0) ** 2 for figure in firsts)) / len(firsts)
    ci95 = (value - half, value + half) if len(firsts) > 1 else tuple(firsts[0]["ci95"])
    names = sorted({figure["metric"] for figure in firsts})
    mean = f"accuracy (mean of {', '.join(names)})" if all(map(is_share, names)) else "mean of the first metrics"
    metric = names[0] if len(names) == 1 else mean
    records = [
        _record(task, sample)
        for task, samples in results["samples"].items()
        for sample in samples
        if sample.get("filter") == samples[0].get("filter")
    ]
    n = sum(figure["n"] for figure in firsts)
    return Evaluation("harness", metric, value, n, (ci95[0], ci95[1]), records, figures=figures)


def task_figures(task: str, results: Mapping[str, Any]) -> list[Figure]:
    metrics: Mapping[str, Any] = results["results"][task]
    figures = []
    for key, value in metrics.items():
        name, _, kind = key.partition(",")
        if not kind or name.endswith("_stderr"):
            continue
        if not isinstance(value, Real) or not math.isfinite(value):
            logger.warning("%s of %s is left out: it must be a finite number, got %s", name, task, value)
            continue
        values = [each.get(name) for each in results["samples"][task] if each.get("filter", kind) == kind]
        stderr = metrics.get(f"{name}_stderr,{kind}")
        stderr = float(stderr) if isinstance(stderr, Real) and math.isfinite(stderr) else None
        half = Z95 * (stderr or 0.0)
        is_binary = all(each in (0, 1) for each in values)
        ci95 = wilson_interval(sum(map(bool, values)), len(values)) if is_binary else (value - half, value + half)
        shown = {"value": float(value), "stderr": stderr, "n": len(values), "ci95": list(ci95)}
        figures.append({"task": task, "metric": name if kind == "none" else key, **shown})
    return figures


def _record(task: str, sample: Mapping[str, Any]) -> Record:
    row = {name: value for name, value in sample["doc"].items() if name != "choices"}
    question = question_of(row) or str(sample["arguments"][0][0])
    first = sample[sample["metrics"][0]] if sample.get("metrics") else None
    responses = sample["filtered_resps"]
    prediction: object = str(responses[0])
    if len(responses) > 1:  # the log-likelihoods of the choices
        prediction = max(range(len(responses)), key=lambda number: float(responses[number][0]))
    return {
        "index": int(sample["doc_id"]),
        "task": task,
        "id": question_id(question),
        "prompt": str(sample["arguments"][0][0]),
        "prediction": prediction,
        "answer": str(sample["target"]),
        **({"correct": bool(first)} if first in (0, 1) else {}),
    }

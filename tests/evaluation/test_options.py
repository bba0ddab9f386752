"""An option changes the outcome, is refused, or its help says when it has no effect."""

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from shears.config import (
    CompressConfig,
    EvaluateConfig,
    ExportConfig,
    SamplingConfig,
    SearchConfig,
    SparsifyConfig,
    TrainConfig,
)
from shears.config.fields import StageConfig
from shears.config.resolve import build
from shears.data.calibration import calibration_batches, text_tokens
from shears.data.prompts import TEMPLATES
from shears.errors import InputError
from shears.evaluation.run import evaluate, parts_of, template_of
from shears.export.peft import export_adapter
from shears.models.load import load_with_adapter
from shears.models.ref import resolve
from shears.runtime.loading import load
from shears.serving.server import serve
from tests.export.made import half_sparse, super_adapter
from tests.export.packages import package
from tests.tiny import tiny_tokenizer

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


MODELS = ("folder", "package", "sub-adapter", "super-adapter")
ROWS: Mapping[str, Mapping[str, Any]] = {
    "choices": {"prompt": "a ", "completion": "b", "choices": ["b", "cd"], "answer": "b"},
    "number": {"instruction": "a ", "input": "", "output": "1", "answer": "1"},
    "equation": {"instruction": "b ", "input": "", "output": "1 + 1", "answer": "2"},
    "gsm8k": {"instruction": "c ", "output": "#### 1", "answer": "1"},
    "boolq": {"instruction": "d? Answer format: true/false", "output": "the correct answer is true", "answer": "true"},
}
TASKS_AND_PROTOCOLS = (
    ("perplexity", None), ("choices", None), ("number", None), ("equation", None), ("gsm8k", None),
    ("boolq", "choices"),
)  # fmt: skip
CASES = [*product(MODELS[:2], TASKS_AND_PROTOCOLS), *product(MODELS[2:], TASKS_AND_PROTOCOLS[:3:2])]
BASE: dict[str, Any] = {"precision": "fp32", "max_new_tokens": 10, "limit": 3, "num_beams": 1, "sequence_length": 40}
CHANGED: dict[str, Any] = {
    "limit": 1, "batch_size": 1, "max_new_tokens": 3, "precision": "bf16", "device": "cpu", "backend": "transformers",
    "columns": {"prompt": "instruction"}, "ranks": "minimal", "protocol": "choices", "num_beams": 3,
    "sequence_length": 16, "dtype": "bf16", "harness": "arc_easy", "include_path": "tasks",
    "task": "perplexity", "data": "arithmetic:train", "shots": "arithmetic:train:1",
}  # fmt: skip
WITHOUT_EFFECT: Mapping[str, tuple[frozenset[str], str]] = {
    "batch_size": (frozenset(), "no figure"),
    "device": (frozenset(), "auto, cpu"),  # auto is the CPU here
    "backend": (frozenset(), "no answer but by rounding"),
    "template": (frozenset({"choices", "perplexity"}), "Without effect on rows of another form"),
    "max_new_tokens": (frozenset({"choices", "perplexity", "boolq"}), "where no answers are generated"),
    "sequence_length": (frozenset({*ROWS}), "without effect on other tasks"),
}
"""Options without effect, in which tasks (none: in all), and what their help says of it."""
ROUNDING = ("precision", "dtype")
"""Options that change rounding alone: seen in losses, while a short generated text stays the same."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str | None]]:
    folder = tmp_path_factory.mktemp("models")
    base = half_sparse(folder / "base")
    adapter = super_adapter(folder / "super", base)
    sub = export_adapter(adapter, folder / "sub")
    packed = package(adapter, folder / "package")
    return {
        "folder": (str(base), None),
        "package": (str(packed), None),
        "sub-adapter": (str(base), str(sub)),
        "super-adapter": (str(base), str(adapter)),
    }


def _data(folder: Path, task: str) -> str:
    """Write a text, or three rows of a task."""
    if task == "perplexity":
        (folder / "text.txt").write_text("".join(chr(97 + n * n % 23) for n in range(160)))
        return str(folder / "text.txt")
    row = ROWS[task]
    key = "prompt" if "prompt" in row else "instruction"
    rows = [json.dumps({**row, key: f"{letter * 5} {row[key]}"}) for letter in "xyz"]
    (folder / f"{task}.jsonl").write_text("\n".join(rows))
    return str(folder / f"{task}.jsonl")


def _outcome(file: Path, model: str, adapter: str | None, options: Mapping[str, Any]) -> dict[str, Any] | str:
    """Return figures and records with what made them, or the message of a refusal."""
    try:
        evaluate(model, file, adapter=adapter, **options)
    except InputError as error:
        return str(error)
    data: dict[str, Any] = json.loads(file.read_text())
    file.unlink()
    return {key: value for key, value in data.items() if key not in ("config", "settings_sha256", "template")}


def test_every_option_is_tried() -> None:
    assert {*CHANGED, "template"} == {*EvaluateConfig.model_fields}


@pytest.mark.parametrize(("name", "of"), CASES)
def test_an_option_of_evaluate_acts_or_is_refused_or_says_when_it_does_not(
    name: str, of: tuple[str, str | None], models: dict[str, tuple[str, str | None]], tmp_path: Path
) -> None:
    task, protocol = of
    given = {"task": task, "data": _data(tmp_path, task), **({"protocol": protocol} if protocol else {})}
    own = {key: value for key, value in BASE.items() if _fits(given, {key: value})}
    before = _outcome(tmp_path / "figures.json", *models[name], {**given, **own})
    assert not isinstance(before, str), before
    ignored: list[str] = []
    for option, value in (*CHANGED.items(), ("template", _other_template(models[name], task))):
        changed = {**given, **own, option: value}
        if changed == {**given, **own} or (option in ROUNDING and "max_new_tokens" in own):
            continue
        after = _outcome(tmp_path / "figures.json", *models[name], changed)
        if after == before:
            tasks, words = WITHOUT_EFFECT.get(option, (frozenset(), ""))
            said = words and words in " ".join(str(EvaluateConfig.model_fields[option].description).split())
            ignored += [option] * (not said or bool(tasks and task not in tasks))
    assert not ignored, f"{ignored} are ignored by {task} of a {name}"


def _other_template(model: tuple[str, str | None], task: str) -> str:
    config = build(EvaluateConfig, "evaluate", {"task": task, "data": "x"})
    known = template_of(config, *parts_of(resolve(model[0]), model[1]))
    return next(template for template in TEMPLATES if template != known)


def _fits(given: Mapping[str, Any], option: Mapping[str, Any]) -> bool:
    try:
        build(EvaluateConfig, "evaluate", {**given, **option})
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (SearchConfig, "max_evaluations seed max_new_tokens task"),
        (ExportConfig, "calibration device"),
        (CompressConfig, "max_steps"),
        (SparsifyConfig, "calibration"),
        (TrainConfig, "kl teacher_top_k"),
    ],
)
def test_the_help_says_when_an_option_is_without_effect(kind: type[StageConfig], names: str) -> None:
    for name in names.split():
        text = " ".join(str(kind.model_fields[name].description).split()).lower()
        assert "without effect" in text or "has no effect" in text, name


def test_an_option_of_generate_acts_or_says_when_it_does_not(models: dict[str, tuple[str, str | None]]) -> None:
    engine = load(models["folder"][0])
    changed: dict[str, Any] = {
        "max_new_tokens": 2, "temperature": 5.0, "top_k": 1, "top_p": 1e-6, "repetition_penalty": 1e6, "stop": [""],
        "seed": 7,
    }  # fmt: skip
    assert {*changed} == {*SamplingConfig.model_fields}
    for temperature, (name, value) in product((0.0, 5.0), changed.items()):
        given: dict[str, Any] = {"max_new_tokens": 20, "temperature": temperature}
        if {name: value} == {"temperature": temperature}:
            continue
        before = engine.generate("abc", **given)
        option = {name: before.text[1:3] if name == "stop" else value}
        is_said = "Without effect at temperature 0" in help_of(name) or "without effect at temperature 0" in help_of(
            name
        )
        assert (engine.generate("abc", **{**given, **option}) == before) == (is_said and not temperature), name


def help_of(name: str) -> str:
    return " ".join(str(SamplingConfig.model_fields[name].description).split())


def test_columns_of_a_text_without_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc " * 40)
    source = str(tmp_path / "text.txt")
    tokenizer = tiny_tokenizer()
    columns = {"text": "a"}
    reads: list[Callable[[], object]] = [
        lambda: text_tokens(source, tokenizer, columns),
        lambda: calibration_batches(source, tokenizer, 1, 8, 1, 0, columns=columns),
    ]
    for read in reads:
        with pytest.raises(InputError, match="columns must be those of rows, got text=a for the text"):
            read()

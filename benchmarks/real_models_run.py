"""Runs one cell of benchmarks.real_models: prune, train, search, export, answer; every artifact is kept and reused.

Each stage is timed, and its peak memory is read from the kernel where it can be reset. A cell has a process of its own
(benchmarks.real_models), so nothing of another cell is in its memory.
"""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import shears
from benchmarks.memory import CLEAR, RESET_PEAK, memory
from benchmarks.real_models_cells import ALPACA, ARMS, BEST, DENSE, Arm, Cell
from benchmarks.real_models_data import test_file, write_training
from benchmarks.report import environment, rows_of
from shears.errors import InputError
from shears.evaluation.evaluated import Evaluation
from shears.models.devices import pick_device, resolved_precision
from shears.models.ref import resolve
from shears.models.tokenizers import load_tokenizer
from shears.records.artifacts import HEALED, RECOVERY_FOLDER, RESULT, SPARSITY, TRAINING_LOG, TRAINING_TIMES, read_json
from shears.records.figures import CONTAMINATION, CUT
from shears.records.timing import machine

MAX_LENGTH = 512
SEEN = "-"
"""Stands in a cell's answers for a question of its training data, which no table counts."""
PRUNING: Mapping[str, Mapping[str, Any]] = {
    BEST: {"method": "admm", "allocation": "sensitivity", "recover_rank": 32},
    "wanda": {"method": "wanda"},
}
DIVERGED = "must be finite"  # of the message that ends a training
TOLERANCE = 0.01  # of a ready base's sparsity


@dataclass(frozen=True)
class Setting:
    """Where data and artifacts lie, and what makes cells smaller or faster for a trial."""

    data: Path
    work: Path
    models: Mapping[str, str]
    """The model, a name or a folder, by its name in the results."""
    bases: Mapping[str, Path] = field(default_factory=dict)
    """Ready pruned folders by MODEL:METHOD-SPARSITY."""
    teachers: Mapping[str, Path] = field(default_factory=dict)
    """Trained adapters of the dense model by its name, that teach the taught arms."""
    backend: str = "auto"
    validation_limit: int = 200
    """Validation examples of a search, the first ones."""
    pruning: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calibration(self) -> dict[str, Any]:
        """Return the keywords of `shears.sparsify` beside method, sparsity and text."""
        return {"num_samples": 64, "sequence_length": 512, "dtype": "bf16", **self.pruning}


class Stages:
    """Seconds and peak memory of a cell's stages; those whose artifacts were there are left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure the block as a stage."""
        with suppress(OSError):  # the peak is then that of all stages up to this one
            CLEAR.write_text(RESET_PEAK)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)
        self.peaks[name] = memory("VmHWM")


def run_cell(cell: Cell, setting: Setting) -> dict[str, Any]:
    """Return the line of a cell: its key, its figures, and what it took."""
    stages = Stages()
    measured = _tuned(cell, setting, stages) if cell.kind == "tune" else _tested(cell, setting, stages)
    return {
        **cell.key, **measured, "seconds": stages.seconds, "peak_bytes": stages.peaks, "machine": machine(),
        "environment": environment(),
    }  # fmt: skip


def base_of(cell: Cell, setting: Setting, stages: Stages) -> str:
    """Return the cell's model: the dense one, a ready folder, or a folder pruned here on the training text."""
    model = setting.models[cell.model]
    if cell.base == DENSE:
        return model
    name = f"{cell.model}:{cell.base}-{cell.sparsity:g}"
    if name in setting.bases:
        return str(checked_base(name, setting.bases[name], cell.sparsity))
    folder = setting.work / cell.model / f"{cell.base}-{cell.sparsity:g}-{cell.trained}"
    if not folder.exists():
        text = _training(replace(cell, examples=0), setting)["train"]  # the same base for any number of examples
        with stages("prune"):
            shears.sparsify(
                model, folder, sparsity=cell.sparsity, calibration=str(text), **PRUNING[cell.base],
                **setting.calibration,
            )  # fmt: skip
    return str(folder)


def checked_base(name: str, folder: Path, sparsity: float) -> Path:
    """Return a ready folder; InputError if it is no pruned or healed folder, or of another sparsity."""
    record = next((folder / each for each in (SPARSITY, HEALED) if (folder / each).is_file()), None)
    if record is None:
        raise InputError(f"--bases {name} must be a folder of shears sparsify or heal, got {folder}; check the path")
    achieved = read_json(record)["achieved"]
    if abs(achieved - sparsity) > TOLERANCE:
        raise InputError(
            f"--bases {name} must have a sparsity of {sparsity:g}, {folder} has {achieved:.3f}; name another folder"
        )
    return folder


def _training(cell: Cell, setting: Setting) -> dict[str, Path]:
    examples = cell.examples or None
    folder = setting.work / "data" / f"{cell.trained}-{examples or 'all'}"
    return write_training(setting.data, folder, cell.trained, examples)


def _adapter(cell: Cell, setting: Setting, stages: Stages) -> tuple[str, Path]:
    """Return the base and the super-adapter of a cell, trained now if it is not there; a killed training goes on."""
    base = base_of(cell, setting, stages)
    arm = ARMS[cell.arm]
    name = f"{cell.arm}-{cell.base}-{cell.sparsity:g}-{cell.trained}-{cell.examples}x{cell.epochs:g}{_form(cell)}"
    folder = setting.work / cell.model / f"{name}-rate{cell.learning_rate:g}-alpha{cell.alpha:g}-seed{cell.seed}"
    if folder.exists():
        return base, folder
    data = _training(cell, setting)["train"]
    with stages("train"):
        shears.train(
            base, folder, data=str(data),
            **training_keywords(cell, arm, data, base), **taught_keywords(cell, setting), **setting.training,
        )  # fmt: skip
    return base, folder


def _form(cell: Cell) -> str:
    """Return the form as a part of a name; nothing for that of the first results."""
    return "" if cell.template == ALPACA else f"-{cell.template}"


def training_keywords(cell: Cell, arm: Arm, data: Path, base: str) -> dict[str, Any]:
    """Return the keywords of `shears.train` beside data; warmup is a tenth of the steps, at most 50.

    An adapter on the pruned model starts from the recovery, unless it is masked: the mask would leave little of it. A
    healed model has a recovery if that was healed too.
    """
    batch_size = 16
    num_rows = len(data.read_text(encoding="utf-8").splitlines())
    steps = math.ceil(num_rows / batch_size * cell.epochs)
    return {
        "ranks": arm.ranks, "alpha": cell.alpha, "learning_rate": cell.learning_rate, "epochs": cell.epochs,
        "batch_size": batch_size, "max_length": MAX_LENGTH, "template": cell.template, "seed": cell.seed,
        "warmup_steps": min(50, steps // 10), "sparse_adapter": arm.merged,
        "sampling": arm.sampling,
        "init": "lora" if arm.is_dense or arm.merged or not (Path(base) / RECOVERY_FOLDER).is_dir() else "recovery",
    }  # fmt: skip


def taught_keywords(cell: Cell, setting: Setting) -> dict[str, str]:
    """Return the teacher of a taught arm as a keyword of `shears.train`; InputError if its model has none."""
    if not ARMS[cell.arm].taught:
        return {}
    if cell.model not in setting.teachers:
        raise InputError(f"{cell.arm} needs --teachers {cell.model}=ADAPTER, of the dense model; name it")
    return {"teacher": str(setting.teachers[cell.model])}


def _tuned(cell: Cell, setting: Setting, stages: Stages) -> dict[str, Any]:
    """Return the validation loss of a cell at the heuristic's ranks, in nats per completion token.

    It is infinite for a rate at which the training diverges.
    """
    try:
        _, adapter = _adapter(cell, setting, stages)
    except InputError as error:
        if DIVERGED not in str(error):
            raise
        return {"loss": math.inf, "stopped": str(error)}
    found = _search(cell, setting, adapter, stages, cell.limit)
    loss = read_json(found)["chosen"]["metrics"]["loss"]
    return {"loss": loss, **_training_speed(adapter)}


def _tested(cell: Cell, setting: Setting, stages: Stages) -> dict[str, Any]:
    """Return the answers of a cell as one string of bits, and its sizes and speeds."""
    if not cell.is_trained:
        return _answered(cell, base_of(cell, setting, stages), None, setting, stages)
    base, adapter = _adapter(cell, setting, stages)
    ranks = cell.ranks
    searched: dict[str, Any] = {}
    if ranks == "searched":
        ranks = str(_search(cell, setting, adapter, stages, setting.validation_limit))
        searched = {"search": _search_summary(Path(ranks))}
    form = "merged-sparse" if ARMS[cell.arm].merged else "peft"
    folder = adapter.with_name(f"{adapter.name}-{cell.ranks}{cell.evaluations or ''}-exported")
    if not folder.exists():
        with stages("export"):
            shears.export_adapter(adapter, folder, ranks=ranks, format=form)
    if ARMS[cell.arm].merged:
        answered = _answered(cell, str(folder), None, setting, stages)
        shutil.rmtree(folder)  # a whole model, made again within a minute
    else:
        answered = _answered(cell, base, folder, setting, stages)
    return {**answered, **searched, **_training_speed(adapter)}


def _search(cell: Cell, setting: Setting, adapter: Path, stages: Stages, limit: int) -> Path:
    """Return the result of a search by validation loss, made now if it is not there.

    A cell without a search evaluates the heuristic alone, which gives its loss: in bf16 where the processor has it,
    for the rates differ by more than it rounds. A search compares single ranks, and takes its own precision.
    """
    strategy, evaluations = ("hill-climbing", cell.evaluations) if cell.evaluations else ("heuristic", 1)
    output = adapter.with_name(f"{adapter.name}-{strategy}{evaluations}")
    if not output.exists():
        with stages("search"):
            shears.search(
                adapter, output, data=str(_training(cell, setting)["validation"]), objective="loss",
                strategy=strategy, max_evaluations=evaluations, limit=limit, seed=cell.seed,
                precision="auto" if cell.evaluations else resolved_precision("auto", pick_device("auto")),
            )  # fmt: skip
    return output / RESULT


def _search_summary(result: Path) -> dict[str, Any]:
    """Return the losses of a search: of the heuristic, which hill climbing evaluates first, and of its choice."""
    content = read_json(result)
    losses = [each["metrics"]["loss"] for each in content["evaluations"]]
    chosen = content["chosen"]["metrics"]
    return {"evaluations": len(losses), "first_loss": losses[0], "loss": chosen["loss"]}


def _answered(cell: Cell, model: str, adapter: Path | None, setting: Setting, stages: Stages) -> dict[str, Any]:
    """Answer the test set greedily; answers of a killed process are kept in the journal beside the figures."""
    subject = adapter.name if adapter else Path(model).name
    questions = f"first{cell.limit}" if cell.limit else "all"
    name = f"{subject}-{cell.test}-{questions}-{cell.max_new_tokens}{_form(cell)}.json"
    output = setting.work / cell.model / "answers" / name
    with stages("evaluate"):
        evaluation = shears.evaluate(
            model, output, None if adapter is None else str(adapter), task=cell.test,
            data=str(test_file(setting.data, cell.test)), num_beams=1, backend=setting.backend, template=cell.template,
            **{"max_new_tokens": cell.max_new_tokens, "limit": cell.limit or None, **setting.evaluation},
        )  # fmt: skip
    tokens = _num_tokens(model, evaluation)
    return {
        "right": answers_text(evaluation.records), "cut": int(evaluation.details[CUT]), "answer_tokens": tokens,
        "answer_tokens_per_second": round(tokens / max(stages.seconds["evaluate"], 0.1), 1),
        "backend": read_json(output)["backend"], **_sizes(model, adapter),
    }  # fmt: skip


def answers_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Return 1 for a right answer, 0 for a wrong one, - for a question that stands in the training data."""
    return "".join(SEEN if row.get(CONTAMINATION) else "01"[bool(row["correct"])] for row in records)


def _num_tokens(model: str, evaluation: Evaluation) -> int:
    """Return the number of tokens in the answers, without those that end them."""
    tokenizer = load_tokenizer(resolve(model))
    ids = tokenizer([row["output"] for row in evaluation.records], add_special_tokens=False)["input_ids"]
    return sum(map(len, ids))


def _sizes(model: str, adapter: Path | None) -> dict[str, int]:
    parameters = shears.inspect(adapter)["parameters"] if adapter is not None else 0
    return {"nonzeros": shears.inspect(resolve(model).folder)["nonzeros"], "adapter_parameters": parameters}


def _training_speed(adapter: Path) -> dict[str, Any]:
    """Return tokens a second of the training, without its first step; nothing for a training of one step."""
    log, times = ({line["step"]: line for line in rows_of(adapter / name)} for name in (TRAINING_LOG, TRAINING_TIMES))
    steps = sorted(log.keys() & times.keys())[1:]
    seconds = sum(times[step]["seconds"] for step in steps)
    tokens = sum(log[step]["tokens"] for step in steps)
    return {"train_tokens_per_second": round(tokens / seconds, 1)} if seconds else {}

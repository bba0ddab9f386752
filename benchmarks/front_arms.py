"""The arms and tasks of benchmarks.front, and how the files of an arm are made: trained, merged, packed, quantized.

All arms of a seed read the same rows as often. The dense model's LoRA learns from the rows; it is merged, rounded into
our packages and into the formats of rivals, and it is the teacher of the other trainings, which learn from the rows and
from it, one half each. Everything is kept in --work and made once.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import get_tensor_name_map
from jaxtyping import Int
from torch import Tensor, nn

import shears
from benchmarks.real_models_data import test_file, write_training
from benchmarks.rival import Engine, Program, converted, dequantized, quantized
from benchmarks.tasks import TASKS as OTHER_TASKS
from benchmarks.tasks import Paths, lines_of, write_mawps_anew, write_rows
from shears.checkpoints.without_code import build_causal_model, known_config, read_config
from shears.data.calibration import calibration_batches
from shears.data.rows import read_rows
from shears.export.gguf import LAYOUTS
from shears.models.load import load_with_adapter
from shears.models.ref import resolve
from shears.quantization import grid, with_inputs
from shears.quantization import training as on_grids
from shears.records.artifacts import GGUF_FILE, SEARCH_SPACE, read_json

Training = Literal["none", "lora", "grid", "masked", "q4_0", "three"]
TRAININGS: Mapping[Training, Mapping[str, Any]] = {
    "lora": {},  # the teacher
    "grid": {"quantize_aware": "int4"},
    "masked": {"sparse_adapter": True},
    "q4_0": {"quantize_aware": "q4_0"},
    "three": {"quantize_aware": "int4"},  # with codes of three bits (`three_bits`)
}
"""Options of `shears train` by the name of a training; all have one rank of 32, which vanishes into the weights."""


@dataclass(frozen=True)
class Arm:
    """What a file holds: the weights of a training, in a number format of ours or of a rival."""

    training: Training
    values: str
    """Of our packages bf16, int8 or int4, or a format of the engine."""
    embeddings: str
    sparsity: float = 0.0
    engine: Engine = "shears"
    known_inputs: bool = False
    """Whether int4 is rounded with the inputs of the training rows."""

    @property
    def is_rival(self) -> bool:
        """Whether another engine than ours answers."""
        return self.engine != "shears"

    @property
    def kind(self) -> str:
        """The colour of its point in a picture: ours sparse, ours dense, or a rival's."""
        return "plain" if self.is_rival else "ours" if self.sparsity else "adapter"


AS_IT_CAME = "dense bf16, as it came"
DENSE = "dense bf16"
DENSE_INT4 = "dense int4, trained"
SPARSE_INT4 = "sparse 50 % int4, trained"
Q4_K_M = "llama.cpp Q4_K_M"
Q4_0 = "llama.cpp Q4_0"
IQ4_K = "ik_llama.cpp IQ4_K"
ARMS: Mapping[str, Arm] = {
    AS_IT_CAME: Arm("none", "bf16", "keep"),
    DENSE: Arm("lora", "bf16", "keep"),
    DENSE_INT4: Arm("grid", "int4", "int4"),
    SPARSE_INT4: Arm("grid", "int4", "int4", 0.5),
    Q4_K_M: Arm("lora", "q4_k_m", "q4_0", engine="llama.cpp"),
    Q4_0: Arm("lora", "q4_0", "q4_0", engine="llama.cpp"),
    IQ4_K: Arm("lora", "iq4_k", "q4_0", engine="ik_llama.cpp"),
    "dense int8": Arm("lora", "int8", "int8"),
    "dense int4, rounded": Arm("lora", "int4", "int4"),
    "llama.cpp Q8_0": Arm("lora", "q8_0", "q8_0", engine="llama.cpp"),
    "llama.cpp IQ4_NL": Arm("lora", "iq4_nl", "iq4_nl", engine="llama.cpp"),
    "llama.cpp IQ4_XS": Arm("lora", "iq4_xs", "iq4_nl", engine="llama.cpp"),
    "llama.cpp Q3_K_M": Arm("lora", "q3_k_m", "q4_0", engine="llama.cpp"),
    "ik_llama.cpp Q4_0": Arm("lora", "q4_0", "q4_0", engine="ik_llama.cpp"),
    "ik_llama.cpp IQ4_KS": Arm("lora", "iq4_ks", "q4_0", engine="ik_llama.cpp"),
    "ik_llama.cpp IQ3_K": Arm("lora", "iq3_k", "q4_0", engine="ik_llama.cpp"),
    "OpenVINO Q4_0": Arm("lora", "q4_0", "q4_0", engine="OpenVINO"),
    "sparse 60 % int4, trained": Arm("grid", "int4", "int4", 0.6),
    "sparse 70 % int4, trained": Arm("grid", "int4", "int4", 0.7),
    "dense Q4_0, trained": Arm("q4_0", "auto", "int4"),
    "dense 3 bits, trained": Arm("three", "bf16", "int4"),
    "dense int4, known inputs": Arm("lora", "int4", "int4", known_inputs=True),
    "sparse 50 % int4, known inputs": Arm("masked", "int4", "int4", 0.5, known_inputs=True),
    "sparse 60 % int4, known inputs": Arm("masked", "int4", "int4", 0.6, known_inputs=True),
    "dense 3 bits, known inputs": Arm("lora", "int3", "int4", known_inputs=True),
    "llama.cpp IQ3_XXS": Arm("lora", "iq3_xxs", "q4_0", engine="llama.cpp"),
    "llama.cpp IQ2_M": Arm("lora", "iq2_m", "q4_0", engine="llama.cpp"),
    "sparse 50 % bf16": Arm("masked", "bf16", "keep", 0.5),
    "dense bf16, second pass": Arm("masked", "bf16", "keep"),
    "sparse 50 % int8": Arm("masked", "int8", "int8", 0.5),
    "sparse 50 % int4, rounded": Arm("masked", "int4", "int4", 0.5),
    "dense int4, as it came": Arm("none", "int4", "int4"),
    "dense int4, as it came, known inputs": Arm("none", "int4", "int4", known_inputs=True),
    "sparse 50 % bf16, untrained": Arm("none", "bf16", "keep", 0.5),
    "sparse 50 % int4, untrained": Arm("none", "int4", "int4", 0.5),
    "sparse 50 % int4, untrained, known inputs": Arm("none", "int4", "int4", 0.5, known_inputs=True),
}
"""Every arm; those that decide come first, so that a run that is stopped has them."""
DECIDING = (DENSE, DENSE_INT4, SPARSE_INT4, Q4_K_M, Q4_0, IQ4_K)
REFERENCES = (DENSE_INT4, Q4_K_M)


@dataclass(frozen=True)
class Task:
    """Where rows come from, and the keywords of `shears train` and `shears evaluate` that ask them."""

    write: Callable[[Path, Path], Paths]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    untrained: Mapping[str, Any]
    """Of `shears evaluate` for the model as it came, in its best form."""


def _mawps(source: Path, target: Path) -> Paths:
    paths = write_mawps_anew(source / "mawps", target)
    rows = [
        {"instruction": row["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:"), "answer": row["answer"]}
        for row in lines_of(paths["test"])
    ]
    return {**paths, "asked": write_rows(target / "asked.jsonl", rows)}


def _gsm8k(source: Path, target: Path) -> Paths:
    test = test_file(source, "gsm8k")
    return {**write_training(source, target, "gsm8k", None), "test": test, "asked": test}


def _arc_easy(source: Path, target: Path) -> Paths:
    paths = ARC_EASY.write(source, target)
    return {**paths, "asked": paths["test"]}


GSM8K = {"task": "gsm8k", "template": "chat", "num_beams": 1, "max_new_tokens": 512}
ARC_EASY = OTHER_TASKS["arc-easy-text"]
TASKS: Mapping[str, Task] = {
    "mawps": Task(
        _mawps,
        {"template": "question"},
        {"task": "equation", "max_new_tokens": 32},
        {"task": "number", "template": "chat", "max_new_tokens": 512},
    ),
    "gsm8k": Task(_gsm8k, {"template": "chat"}, GSM8K, GSM8K),
    "arc-easy": Task(_arc_easy, {}, ARC_EASY.evaluation, ARC_EASY.evaluation),
}


@dataclass(frozen=True)
class Maker:
    """Makes the files of one model on one task at one seed, each once."""

    model: str
    name: str
    task: str
    seed: int
    data: Path
    work: Path
    examples: int
    """Training rows, the first ones; 0: all."""
    epochs: float
    training: Mapping[str, Any] = field(default_factory=dict)
    """Further options of every `shears train`."""
    pruning: Mapping[str, Any] = field(default_factory=dict)
    """Options of every `shears sparsify`; its sequences also measure the importance matrix."""
    pythons: Mapping[Engine, Path] = field(default_factory=dict)
    """The Python of each rival's engine."""
    given: Path | None = None
    """Training rows in place of the set's."""

    @property
    def subject(self) -> str:
        """What is learnt, which names all files that depend on the rows: the task, with rows that are given."""
        return f"{self.task}-{self.given.stem}" if self.given else self.task

    @property
    def folder(self) -> Path:
        """The folder of this seed and budget."""
        return self.work / self.name / f"{self.subject}-{self.examples or 'all'}-x{self.epochs:g}-seed{self.seed}"

    def rows(self, split: str) -> Path:
        """Return the file of a split."""
        target = self.work / "data" / self.subject
        path = self.given if self.given and split == "train" else _files(self.task, self.data, target)[split]
        if split != "train" or not self.examples:
            return path
        return write_rows(target / f"train-{self.examples}.jsonl", read_rows(str(path))[: self.examples])

    def file(self, arm: Arm) -> Path:
        """Return what answers: a folder, or a file of llama.cpp or ik_llama.cpp."""
        if arm.engine == "OpenVINO":
            return converted(self.program(arm.engine), self.readable(arm), self.folder / "dense-openvino")
        return self._quantized(arm) if arm.is_rival else self._package(arm)

    def readable(self, arm: Arm) -> Path:
        """Return a file of a rival's weights that our own decoder reads too."""
        if arm.engine == "OpenVINO":
            return self._quantized(replace(arm, engine="llama.cpp"))
        file = self.file(arm)
        return dequantized(self.program(arm.engine), file) if arm.engine == "ik_llama.cpp" else file

    def program(self, engine: Engine) -> Program:
        """Return what runs an engine; ours runs in this Python."""
        return Program(engine, self.pythons.get(engine, Path(sys.executable)))

    def _package(self, arm: Arm) -> Path:
        known = "-known-inputs" if arm.known_inputs else ""
        package = self.folder / f"{_stem(arm.training, arm.sparsity)}-{arm.values}{known}"
        if package.exists():
            return package
        source: str | Path = self.base(arm.sparsity)
        if arm.training in ("lora", "three"):
            source = self.merged(arm.training)
        elif arm.training != "none":
            source = self.adapter(arm.training, arm.sparsity)
        settings: dict[str, Any] = {"format": "gguf" if arm.training == "q4_0" else "package"}
        if arm.known_inputs:
            settings["calibration"] = str(self.rows("train"))
        values = "int4" if arm.values == "int3" else arm.values
        with three_bits(arm.values == "int3"):
            shears.export_adapter(source, package, dtype=values, embedding_dtype=arm.embeddings, **settings)
        return package

    def bytes(self, arm: Arm) -> int:
        """Return the bytes of all files that answering reads; of three bits, which no file has, by arithmetic.

        A weight has one bit less than in int4, and so has the zero point of a block.
        """
        if arm.training == "three" or arm.values == "int3":
            with torch.device("meta"):
                model = build_causal_model(known_config(self.merged()))
            weights = sum(linear.weight.numel() for linear in block_linears(model).values())
            return self.bytes(ARMS["dense int4, rounded"]) - round(weights * (1 + 1 / grid.BLOCK) / 8)
        return sum(path.stat().st_size for path in files_of(self.file(arm)))

    def trained_with(self, arm: Arm) -> dict[str, Any]:
        """Return what a training decided by itself: alpha, learning rate, optimizer steps."""
        if arm.training == "none":
            return {}
        record = read_json(self.adapter(arm.training, arm.sparsity) / SEARCH_SPACE)
        return {name: record[name] for name in ("alpha", "learning_rate", "num_steps")}

    def merged(self, training: Training = "lora") -> Path:
        """Return the dense model with the adapter of a training merged."""
        folder = self.folder / ("dense-merged" if training == "lora" else f"dense-{training}-merged")
        if not folder.exists():
            with three_bits(training == "three"):
                shears.export_adapter(self.adapter(training), folder, format="merged")
        return folder

    def adapter(self, training: Training, sparsity: float = 0.0) -> Path:
        """Return the adapter of a training; a killed one goes on from its last checkpoint."""
        output = self.folder / _stem(training, sparsity)
        if not output.exists():
            learnt = {} if training == "lora" else {"teacher": str(self.adapter("lora"))}
            settings = {**TASKS[self.task].training, **TRAININGS[training], **learnt, **self.training}
            with three_bits(training == "three"):
                shears.train(
                    self.base(sparsity), output, data=str(self.rows("train")), seed=self.seed,
                    epochs=self.epochs, **settings,
                )  # fmt: skip
        return output

    def base(self, sparsity: float) -> str:
        """Return the dense model, or the one pruned on all training rows, which seeds share."""
        if not sparsity:
            return self.model
        folder = self.work / self.name / f"{self.subject}-sparse-{100 * sparsity:.0f}"
        if not folder.exists():
            text = replace(self, examples=0).rows("train")
            shears.sparsify(self.model, folder, sparsity=sparsity, calibration=str(text), **self.pruning)
        return str(folder)

    def _quantized(self, arm: Arm) -> Path:
        """Return a file that an engine quantized, with the importance matrix, from the merged model in F16."""
        source = self.folder / "dense-gguf"
        if not source.exists():
            shears.export_adapter(self.merged(), source, format="gguf")
        matrix = self.folder / "importance.npz"
        if not matrix.is_file():
            self._measure_importance(matrix)
        target = self.folder / f"dense-{'ik-' if arm.engine == 'ik_llama.cpp' else ''}{arm.values}.gguf"
        return quantized(self.program(arm.engine), source / GGUF_FILE, target, arm.values, arm.embeddings, matrix)

    def _measure_importance(self, target: Path) -> None:
        ref = resolve(self.merged())
        model, tokenizer = load_with_adapter(ref, None, "fp32")
        config = read_config(ref.folder)
        names = get_tensor_name_map(LAYOUTS[config.model_type], config.num_hidden_layers)
        count, length = self.pruning.get("num_samples", 32), self.pruning.get("sequence_length", 512)
        batches = calibration_batches(str(self.rows("train")), tokenizer, count, length, 1, self.seed).batches
        vectors = {f"{names.get_name(name)}.weight": vector for name, vector in importance(model, batches).items()}
        part = target.with_name(f"partial-{target.name}")
        np.savez(part, allow_pickle=False, **vectors)
        part.replace(target)


def files_of(file: Path) -> list[Path]:
    """Return the files that answering reads: a file, or those of a folder."""
    return [file] if file.is_file() else [path for path in file.iterdir() if path.is_file()]


@contextmanager
def three_bits(is_asked: bool) -> Iterator[None]:
    """Give int4's grid codes up to 7, those of three bits, which our files do not have; nothing if not asked."""
    modules: tuple[Any, ...] = (grid, on_grids, with_inputs) if is_asked else ()
    usual = grid.LARGEST_CODE
    for module in modules:
        module.LARGEST_CODE = 7
    try:
        yield
    finally:
        for module in modules:
            module.LARGEST_CODE = usual


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return all linears but the head."""
    linears = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    return {name: each for name, each in linears.items() if name != "lm_head"}


@torch.no_grad()
def importance(model: nn.Module, batches: Iterable[Int[Tensor, "B T"]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the mean square of every input of each linear but the head, in float32 (llama.cpp's importance matrix)."""
    linears = block_linears(model)
    sums = {name: torch.zeros(each.in_features, dtype=torch.float64) for name, each in linears.items()}

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += inputs[0].flatten(0, -2).double().square().sum(0)

    num_tokens = 0
    with ExitStack() as stack:
        for name, linear in linears.items():
            stack.callback(linear.register_forward_pre_hook(partial(add, name)).remove)
        for ids in batches:
            model(ids, use_cache=False, logits_to_keep=1)
            num_tokens += ids.numel()
    return {name: (total / num_tokens).float().numpy() for name, total in sums.items()}


def pareto(points: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """Yield the names of points (cost, value) that none beats, the cheapest first.

    A point beats another if it costs no more and is worth no less, and one of the two is better.
    """
    best = (float("inf"), float("-inf"))
    for name, point in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if point[1] > best[1] or point == best:
            yield name
            best = point


def _stem(training: Training, sparsity: float) -> str:
    return f"sparse-{100 * sparsity:.0f}-{training}" if sparsity else f"dense-{training}"


@cache
def _files(task: str, source: Path, target: Path) -> Paths:
    return TASKS[task].write(source, target)

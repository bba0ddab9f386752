"""Typical mistakes and what the command line answers: lines that say what must hold, what came and what to do."""

import shlex
from pathlib import Path

import pytest
import torch

from tests.conftest import Call
from tests.tiny import save_tiny

SHORT = "--calibration arithmetic:train --num-samples 4 --sequence-length 32"
MISTAKES = {
    "trian": ["No such command 'trian'. Did you mean 'train'?"],
    "init": ["quickstart.yaml must not exist yet"],
    "init quikstart": ["the recipe must be one of", "got 'quikstart'"],
    "train": ["Missing argument"],
    "train base out": ["train.data must be given (--data)"],
    "train base out --daat rows.jsonl": ["No such option: --daat", "--data", "See shears train --help"],
    "train base out --data rows.jsonl --ranks 8,x --learning-rate -1 --batch-size 7.5": [
        "train.learning_rate must be greater than 0, got '-1'",
        "train.batch_size must be a valid integer, got '7.5'",
        "train.ranks.1 must be a valid integer, got 'x'",
    ],
    "train base out --data": ["Option '--data' requires an argument. See shears train --help"],
    "train base out --data rows.json": ["rows.json cannot be read: it does not exist"],
    "train base out --data words.txt": ["words.txt cannot be read: a file of rows must end in .json"],
    "train base out --data other.jsonl": ["row 1 of other.jsonl: a row must have the columns prompt and completion"],
    "train base out --data rows.jsonl --groups c_attn": ["no linear matches target 'c_attn'; this model has q_proj"],
    "train base out --data rows.jsonl --batch-size 16 --micro-batch-size 3": ["must divide"],
    "train base out --data rows.jsonl --set train.alhpa=3": ["did you mean 'train.alpha'"],
    "train base base --data rows.jsonl": ["must not exist yet"],
    "sparsify nowhere/at/all out --calibration rows.jsonl": ["there is no nowhere/at/all"],
    "sparsify base out --calibration none.txt": ["none.txt"],
    "sparsify base base --calibration rows.jsonl": ["must not exist yet"],
    "sparsify base out --sparsity 1.5": ["sparsify.sparsity must be less than 1, got '1.5'"],
    "sparsify base out --sparsity 50 --calibration rows.jsonl": ["sparsify.sparsity must be less than 1, got '50'"],
    "sparsify base out": ["sparsify.calibration must be given (--calibration) for base: name text like"],
    "sparsify base out --method magnitude --dtype half": ["must be 'auto', 'fp32', 'bf16' or 'fp16', got 'half'"],
    "sparsify base out --pattern 3:2": ["must be N:M with 0 < N < M, got 3:2"],
    "sparsify base out --pattern 2:4 --sparsity 0.6": [
        "2:4 needs sparsity 0.5 and allocation uniform, got sparsity 0.6"
    ],
    "sparsify base out --pattern diagonal": ["sparsify.pattern must"],
    f"sparsify base out --skip q_porj {SHORT}": ["no linear matches target 'q_porj'", "did you mean 'q_proj'"],
    "sparsify base out --method foo": ["must be 'wanda', 'magnitude', 'sparsegpt' or 'admm', got 'foo'"],
    "sparsify base out --allocation fair": ["must be 'uniform' or 'sensitivity', got 'fair'"],
    "sparsify out": ["Missing argument", "OUT"],
    "search base found --data rows.jsonl": ["must be a super-adapter"],
    "export base out": ["must be a super-adapter"],
    "evaluate base": ["evaluate.task must be given (--task)", "evaluate.data must be given (--data)"],
    "evaluate base --task nubmer --data rows.jsonl": ["got 'nubmer'"],
    "evaluate base --adapter base --task number --data rows.jsonl": ["adapter_config.json"],
    "evaluate base --task number --data rows.jsonl --output ''": ["must be a regular file, got ."],
    "init o\udcff": ["names and texts must be UTF-8, got 'o\\udcff'"],
    "generate nowhere/model --prompt Hi": ["the model nowhere/model, which is no folder here, cannot be read"],
    "generate base": ["Missing option '--prompt'"],
    "inspect nowhere": ["nowhere must be a model, an artifact of shears, a JSON or a .gguf file"],
    "inspect base other": ["Got unexpected extra argument(s) (other). See shears inspect --help"],
    "run recipe.yaml": ["unknown key 'trian'; did you mean 'train'?"],
    "run recipe.yml": ["the recipe recipe.yml must exist, got no such file; shears init writes one"],
    "--threads 0 inspect base": ["Invalid value for '--threads'"],
    "sparsify base out --calibration none.jsonl": ["none.jsonl"],
    "sparsify base out --calibration other.jsonl": [
        "rows of other.jsonl must have the column text or those of examples"
    ],
    "sparsify base file/out --method magnitude": ["can be written, got file/out"],
    "heal base out --teacher other --tokens 1k --data none.txt": ["none.txt"],
    "heal base out --teacher other --tokens 1k --data other.jsonl": ["must have the column text or those of examples"],
    "heal base out --teacher other --tokens 1k --data words.txt --precision fp16 --device cpu": ["needs a CUDA device"],
    "heal base out --teacher nowhere/at/all --tokens 1k --data words.txt": ["nowhere/at/all"],
    "train base out --data none.jsonl": ["none.jsonl"],
    "train base out --data rows.jsonl --validation none.jsonl": ["none.jsonl"],
    "train base out --data rows.jsonl --precision fp16 --device cpu": ["needs a CUDA device"],
    "train base out --data rows.jsonl --teacher nowhere/at/all": ["nowhere/at/all"],
    "export base out --format package --dtype int4 --calibration none.txt": ["none.txt"],
    "evaluate base --task perplexity --data none.txt": ["none.txt"],
    "evaluate base --task perplexity --data other.jsonl": ["must have the column text"],
    "evaluate base --task number --data none.jsonl": ["none.jsonl"],
    "evaluate base --task number --data rows.jsonl --output file/out.json": ["can be written, got file/out.json"],
    "compress base out --target 0.1MB --calibration none.txt": ["none.txt"],
    "compress base out --target 0.1MB --data none.jsonl": ["none.jsonl"],
    "compress base out --target 0.1MB --data other.jsonl": ["other.jsonl"],
    "compress base file/out --target 0.1MB --calibration words.txt": ["can be written, got file/out"],
}
"""Calls, and what stands in the lines of the answer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and recipes, in which the calls are made."""
    made = tmp_path_factory.mktemp("mistakes")
    save_tiny(made / "base")
    (made / "rows.jsonl").write_text('{"prompt": "1+1=", "completion": " 2", "answer": 2}\n')
    (made / "other.jsonl").write_text('{"query": "1+1="}\n')
    (made / "words.txt").write_text("some words, " * 20)
    save_tiny(made / "other", seed=1)
    (made / "file").touch()
    (made / "quickstart.yaml").write_text("model: base")
    (made / "recipe.yaml").write_text("model: base\noutput: out\ntrian: {data: rows.jsonl}")
    return made


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_answered_in_lines_that_help(
    words: str, folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    code, output, errors = call(*shlex.split(words))
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (code, output) == (2, "")
    assert "Traceback" not in errors
    assert lines
    assert lines[-1] == errors.splitlines()[-1]
    for part in MISTAKES[words]:
        assert any(part in line for line in lines), errors
    assert sorted(folder.rglob("*")) == before


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
OF_CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes. Error"
TRAIN = "train base out --data rows.jsonl"


@pytest.mark.parametrize(
    ("words", "raised_in", "error"),
    [
        (TRAIN, "train", torch.OutOfMemoryError(OUT_OF_MEMORY)),
        (TRAIN, "train", RuntimeError(OF_CPU)),
        (TRAIN, "train", MemoryError()),
        # its error is wrapped into one about the model
        ("generate base --prompt Hi", "models.load._from_pretrained", torch.OutOfMemoryError(OUT_OF_MEMORY)),
    ],
)
def test_a_lack_of_memory_is_one_line(
    words: str, raised_in: str, error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, *, call: Call
) -> None:
    def raise_it(*_: object, **__: object) -> None:
        raise error

    monkeypatch.chdir(folder)
    monkeypatch.setattr(f"shears.{raised_in}", raise_it)
    code, _, errors = call(*words.split())
    assert code == 1
    line = errors.splitlines()[-1]
    assert line.startswith("error: out of memory (")
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors

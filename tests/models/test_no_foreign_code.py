"""No folder's Python runs, whatever its files ask for, and whatever stands on standard input."""

import ast
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shears.checkpoints.without_code import load_config
from shears.cli import main
from shears.errors import InputError
from shears.models.load import load_model, load_with_adapter
from shears.models.ref import load_tokenizer, resolve
from tests.end_to_end.recipe import write_recipe
from tests.models.foreign import Armed, arm
from tests.models.gguf_files import write_gguf
from tests.runtime.native.decoders import running_in
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("src", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
TRAIN = "--data train.jsonl --alpha 4 --max-steps 1 --batch-size 2 --device cpu"
SHORT = "--max-new-tokens 2"
LOADING = {"from_pretrained", "from_config", "load_dataset"}
NO_OPTION = {"PeftModel": "src/shears/models/load.py", "GenerationConfig": "src/shears/checkpoints/without_code.py"}
"""Classes whose `from_pretrained` has no trust_remote_code, and the one file that may call it."""
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNSAFE = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("os", "system"),
          ("yaml", "unsafe_load"), ("joblib", "load"), ("marshal", "loads"), ("jinja2", "Environment")}  # fmt: skip


def call(words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process, with `y` on every line of standard input; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["shears", *words.split()])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 4)))
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_every_kind_of_artifact_is_loaded_without_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_recipe(tmp_path)
    marker = tmp_path / "ran"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "base"))  # as for `python -m shears` in that folder
    commands = {
        "base": "inspect base",
        "sparse": "sparsify base sparse --calibration train.jsonl --num-samples 2 --sequence-length 9 --recover-rank 2",
        "super": f"train sparse super --ranks 4,2 {TRAIN}",
        "searched": "search super searched --data validation.jsonl --limit 2 --strategy heuristic --device cpu",
        "sub": "export super sub --sub-adapter searched/result.json",
        "merged": "export super merged --sub-adapter heuristic --format merged",
        "package": "export super package --sub-adapter heuristic --format package",
        "unpacked": "export package unpacked --format unpacked",
        "figures": f"evaluate sparse --adapter sub --task number --data test.jsonl --limit 2 {SHORT}",
        "text": f"generate merged --prompt 1+1= {SHORT}",
        "chat": f"chat package {SHORT}",
        "transformers": f"generate package --prompt 1+1= {SHORT}",
        "started": f"train sparse started --ranks 2 --init recovery {TRAIN}",
        "plan": "run recipe.yaml --output planned --dry-run",
        "push": "push sub me/sub --base me/base --dry-run",
    }
    for output, command in commands.items():
        if output == "base":
            arm(tmp_path / "base", marker)
        with running_in(output):
            assert call(command, monkeypatch) == 0, (command, capfd.readouterr().err)
        assert not marker.exists(), command
        for folder in (tmp_path / output, tmp_path / output / "recovery"):
            if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
                for file in folder.glob("*.json"):
                    assert output == "base" or '"auto_map"' not in file.read_text(), file
                arm(folder, marker)


@pytest.mark.parametrize(
    "command",
    [
        "sparsify model out --num-samples 1 --sequence-length 8 --calibration rows.txt",
        "train model out --data rows.jsonl",
        f"evaluate model --task number --data arithmetic:test {SHORT}",
        f"generate model --prompt a {SHORT}",
    ],
)
def test_a_model_that_needs_its_code_is_refused_in_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "ran"
    arm(save_tiny(tmp_path / "model"), marker, model_type="stranger")
    (tmp_path / "rows.txt").write_text("some text to read, " * 20)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "1 + 1 =", "answer": "2"}\n')
    assert call(command, monkeypatch) == 2
    *_, message = capfd.readouterr().err.splitlines()
    assert message.startswith("error: ")
    assert "needs code of its own" in message
    assert "which shears never runs; use a model that transformers knows" in message
    assert not marker.exists()
    assert not list(tmp_path.glob("out*"))


def test_a_tokenizer_that_needs_its_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    folder = arm(save_tiny(tmp_path / "model"), marker, model_type="stranger")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "StrangerTokenizer"}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 4))
    with pytest.raises(InputError, match="needs code of its own"):
        load_tokenizer(resolve(folder))
    assert not marker.exists()


def test_a_gguf_file_is_read_without_the_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "model").mkdir()
    file = write_gguf(tmp_path / "model" / "tiny.gguf")
    arm(save_tiny(tmp_path / "other"), marker, model_type="stranger")
    for beside in (tmp_path / "other").iterdir():
        if beside.is_file():
            shutil.copyfile(beside, file.parent / beside.name)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 4))
    assert load_model(file).config.model_type == "llama"
    load_tokenizer(resolve(file))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["stranger/kernels", "kernels-community/flash-attn2:run", {"": "stranger/kernels"}])
def test_kernels_of_a_repository_are_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": {key: value}}))
    with pytest.raises(InputError, match="kernels of the repository"):
        load_config(folder)
    with pytest.raises(InputError, match="kernels of the repository"):
        load_model(folder)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = arm(save_tiny(tmp_path / "model"), marker)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError):
        load_model(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    torch.save({"weight": Armed(marker)}, adapter / "adapter_model.bin")
    base = save_tiny(tmp_path / "base")
    with pytest.raises(InputError, match=r"must hold its weights in adapter_model\.safetensors"):
        load_with_adapter(base, adapter)
    shutil.copyfile(adapter / "adapter_config.json", base / "adapter_config.json")
    shutil.copyfile(adapter / "adapter_model.bin", base / "adapter_model.bin")
    with pytest.raises(InputError, match=r"must hold its weights in adapter_model\.safetensors"):
        load_model(base)
    assert not marker.exists()


HOSTILE: dict[str, dict[str, Any]] = {
    "a module": {"megatron_config": {"a": 1}, "megatron_core": "stranger"},
    "a tokenizer": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "prompt_tuning_init": "TEXT",
                    "prompt_tuning_init_text": "a", "tokenizer_name_or_path": "MODEL", "inference_mode": False,
                    "tokenizer_kwargs": {"trust_remote_code": True}},
    "an adapter": {"peft_type": "XLORA", "hidden_size": 32, "adapters": {"0": "MODEL"}},
    "a cache": {"init_lora_weights": "corda", "corda_config": {"cache_file": "MODEL/adapter_model.bin"}},
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_an_adapter_cannot_name_code(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    model = arm(save_tiny(tmp_path / "model"), marker)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copyfile(model / "model.safetensors", adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    text = json.dumps(settings | HOSTILE[what]).replace("MODEL", str(model))
    (adapter / "adapter_config.json").write_text(text)
    monkeypatch.syspath_prepend(str(model))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 4))
    with pytest.raises(InputError):
        load_with_adapter(tmp_path / "model", adapter)
    assert not marker.exists()


def test_an_index_that_names_files_of_other_folders_is_refused(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    weights = load_model(base).state_dict()
    for name in ("../base/model.safetensors", str(base / "model.safetensors"), "..", r"..\base\model.safetensors"):
        folder = tmp_path / "model"
        shutil.copytree(base, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="must name files of its own folder"):
            load_model(folder)


def _calls(text: str) -> list[tuple[str, str, ast.Call]]:
    """Return the owner and the name of every function that is called; the owner of `cast("Any", X).f` is X."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            function = node.func
            owner = function.value if isinstance(function, ast.Attribute) else None
            if isinstance(owner, ast.Call) and owner.args:
                owner = owner.args[-1]
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            found.append((getattr(owner, "id", ""), name, node))
    return found


def test_no_source_file_loads_with_code() -> None:
    places = [(path.relative_to(ROOT).as_posix(), call) for path in SOURCES for call in _calls(path.read_text())]
    loading = [name for name, (_, function, _) in places if function in LOADING]
    assert loading.count("src/shears/checkpoints/without_code.py") == 4  # where all of shears' loading passes
    for name, (owner, function, node) in places:
        where = f"{name}:{node.lineno}"
        if function in LOADING and NO_OPTION.get(owner) != name:
            options = {option.arg: option.value for option in node.keywords}
            trusted = options.get("trust_remote_code")
            assert isinstance(trusted, ast.Constant), where
            assert trusted.value is False, where
        runs = function in RUNS_CODE and isinstance(node.func, ast.Name)
        assert not (runs and name.startswith("src/")), where  # a benchmark runs code of its own in another process
        assert (owner, function) not in UNSAFE, where
        safe = (owner, function) != ("yaml", "load") or name == "src/shears/config/resolve.py"  # of a SafeLoader
        assert safe, where
        assert not any(option.arg in ("trust_remote_code", "allow_pickle") and getattr(option.value, "value", 0) is True
                       for option in node.keywords), where  # fmt: skip

"""The stage: stock PEFT adapters load, wrong ones are refused, the same inputs give the same bytes."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

import shears
from shears.config import EvaluateConfig
from shears.config.fields import TemplateName
from shears.data.examples import load_examples, tokenize_all
from shears.errors import InputError
from shears.evaluation.evaluated import TextJournal, journal_path
from shears.evaluation.run import evaluate, open_model, with_template
from shears.export.peft import export_adapter
from shears.models import devices
from shears.models.load import load_with_adapter
from shears.models.ref import resolve
from shears.records.artifacts import SUB_ADAPTER, weights_fingerprint, write_json
from shears.runtime.loading import load
from tests.runtime.native.decoders import extension_is_missing
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

OPTIONS: dict[str, Any] = {"task": "equation", "data": "arithmetic:test", "limit": 3, "max_new_tokens": 4}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "base")


def _adapter(folder: Path, rank: int = 2) -> Path:
    """Save a LoRA adapter that changes the outputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        get_peft_model(tiny_model(), config).save_pretrained(str(folder))
    return folder


def test_the_same_inputs_give_the_same_bytes(base: Path, tmp_path: Path) -> None:
    files = [tmp_path / "deep" / "one.json", tmp_path / "two.json"]
    for file in files:
        evaluate(str(base), file, **OPTIONS)
    assert files[0].read_bytes() == files[1].read_bytes()
    data = json.loads(files[0].read_text())
    assert (data["task"], data["metric"], data["n"], len(data["records"])) == ("equation", "accuracy", 3, 3)


class Casts(TorchDispatchMode):
    """Counts how often each parameter is cast, by its place in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], torch.nn.Parameter):
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def test_frozen_weights_under_an_adapter_are_cast_once_not_at_every_forward(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter")
    with Casts() as casts:
        evaluate(str(base), adapter=str(adapter), precision="bf16", backend="transformers", **OPTIONS)
    assert set(casts.counts.values()) == {1}


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder", "must be a regular file, got"),
        ("file/figures.json", "must lie in a folder that can be written"),
        ("file", "must be another file than the data"),
        ("pipe", "must be a regular file, got .*pipe"),  # like /dev/null, which a file must not replace
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    output: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=message):
        evaluate("nowhere/at/all", tmp_path / output, **{**OPTIONS, "data": str(tmp_path / "file")})


@pytest.mark.parametrize("adapted", [False, True])
def test_fp32_is_the_arithmetic_of_a_16_bit_model_too(adapted: bool, base: Path, tmp_path: Path) -> None:
    tiny_model().bfloat16().save_pretrained(base)
    adapter = str(_adapter(tmp_path / "adapter")) if adapted else None
    wide = tmp_path / "wide"
    shutil.copytree(base, wide)
    tiny_model().bfloat16().float().save_pretrained(wide)
    options = {**OPTIONS, "task": "perplexity", "sequence_length": 64, "device": "cpu"}
    expected = evaluate(str(wide), adapter=adapter, precision="fp32", **options).value
    assert evaluate(str(base), tmp_path / "one.json", adapter, precision="fp32", **options).value == expected
    options["dtype"] = "bf16"
    assert evaluate(str(base), tmp_path / "two.json", adapter, precision="fp32", **options).value != expected
    configs = [json.loads((tmp_path / name).read_text())["config"] for name in ("one.json", "two.json")]
    assert [config["dtype"] for config in configs] == ["fp32", "bf16"]  # what the figures are of


def test_an_adapter_of_another_base_is_refused_with_both_fingerprints(base: Path, tmp_path: Path) -> None:
    adapter = _adapter(tmp_path / "adapter")
    other = save_tiny(tmp_path / "other", seed=1)
    record = {"base_fingerprint": weights_fingerprint(base), "fingerprint": weights_fingerprint(adapter)}
    write_json(adapter / SUB_ADAPTER, record)
    load_with_adapter(base, adapter)
    with pytest.raises(InputError, match=f"{weights_fingerprint(base)[:12]}.*got {weights_fingerprint(other)[:12]}"):
        load_with_adapter(other, adapter)


@pytest.mark.parametrize(
    ("task", "recorded", "has_chat", "template"),
    [
        ("number", None, True, "chat"), ("choices", None, True, "chat"), ("exact", None, False, "question"),
        ("equation", None, True, "question"), ("gsm8k", None, True, "chat"), ("gsm8k", None, False, "alpaca"),
        ("boolq", None, True, "alpaca"), ("number", "alpaca", True, "alpaca"), ("gsm8k", "chat", True, "chat"),
        ("equation", "chat", True, "question"),
    ],
)  # fmt: skip
def test_the_template_follows_the_record_then_the_task_then_the_model(
    task: str, recorded: str | None, has_chat: bool, template: str, base: Path
) -> None:
    if recorded is not None:
        write_json(base / SUB_ADAPTER, {"template": recorded})
    if not has_chat:
        (base / "chat_template.jinja").unlink()
    for named, expected in ((None, template), ("alpaca", "alpaca")):
        config = EvaluateConfig.model_validate({"task": task, "data": "x", "template": named})
        assert with_template(config, resolve(base), None).template == expected


def test_instructions_of_a_text_are_measured_in_the_form_of_use(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Add 1 and 1", "output": "2"}\n' * 9)

    def measured(data: Path, **named: str) -> tuple[str | None, int]:
        output = tmp_path / "figures.json"
        evaluate(base, output, task="perplexity", data=str(data), sequence_length=9, device="cpu", **named)
        record = json.loads(output.read_text())
        return record["config"]["template"], record["n"]

    def expected(template: TemplateName) -> tuple[str, int]:
        tokenizer = tiny_tokenizer()
        read = tokenize_all(load_examples(str(rows), template, tokenizer), tokenizer, 512)
        return template, sum(len(row.input_ids) for row in read) // 9 * 8

    assert measured(rows) == expected("chat")
    assert measured(rows, template="alpaca") == expected("alpaca")
    write_json(base / "merged.json", {"template": "question"})
    assert measured(rows) == expected("question")
    (base / "merged.json").unlink()
    (tmp_path / "text.txt").write_text("abc " * 9)
    assert measured(tmp_path / "text.txt")[0] is None


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_a_package_answers_by_its_own_decoder_as_when_it_is_served(tmp_path: Path, values: str) -> None:
    if extension_is_missing():
        pytest.skip("the C++ extension is not built")
    shears.sparsify(str(save_tiny(tmp_path / "dense")), tmp_path / "sparse", sparsity=0.6, method="magnitude")
    package = export_adapter(tmp_path / "sparse", tmp_path / "package", format="package", dtype=values)
    evaluate(str(package), tmp_path / "native.json", **OPTIONS)
    record = json.loads((tmp_path / "native.json").read_text())
    assert (record["backend"], record["values"]) == ("native", values)
    engine = load(str(package))
    served = [engine.generate(each["prompt"], max_new_tokens=4, temperature=0.0).text for each in record["records"]]
    assert [text.split("\n")[0] for text in served] == [each["output"].split("\n")[0] for each in record["records"]]


WRITTEN: dict[str, Any] = {
    "task": "mawps", "data": "rows.jsonl", "max_new_tokens": 4, "batch_size": 2, "precision": "fp32"
}  # fmt: skip
ROWS = "".join(f'{{"instruction": "How many are {n} and {n * n}?", "answer": "{n + n * n}.0"}}\n' for n in range(7))


class Killed(BaseException):
    """Stands for a kill: nothing in the code may catch it."""


def _kill_after(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Note the numbers of the texts that are kept; die when there are `most`."""
    kept: list[int] = []
    put = TextJournal.put

    def spy(self: TextJournal, numbers: Any, texts: Any) -> None:
        put(self, numbers, texts)
        kept.extend(numbers)
        if len(kept) >= most:
            raise Killed

    monkeypatch.setattr(TextJournal, "put", spy)
    return kept


@pytest.mark.parametrize("num_beams", [1, 2])  # the native decoder, transformers
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(
    base: Path, num_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base)
    Path("rows.jsonl").write_text(ROWS)
    options = {**WRITTEN, "num_beams": num_beams}
    evaluate(str(base), "whole.json", **options)
    with monkeypatch.context() as patch:
        first = _kill_after(patch, 3)
        with pytest.raises(Killed):
            evaluate(str(base), "killed.json", **options)
    partial = journal_path(Path("killed.json"))
    assert not Path("killed.json").exists()
    with partial.open("a") as file:
        file.write('{"numbers": [0, 1], "te')  # the kill hit a line half-way
    second = _kill_after(monkeypatch, 99)
    evaluate(str(base), "killed.json", **options)
    assert sorted(first + second) == list(range(7))
    assert Path("killed.json").read_bytes() == Path("whole.json").read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize(
    "change", [{"max_new_tokens": 5}, {"template": "question"}, {"num_beams": 1}, {"backend": "transformers"}, {}]
)
def test_texts_of_another_evaluation_are_not_taken(
    base: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last case changes the end tokens of the model: who sees texts that do not end may mend that and go on."""
    monkeypatch.chdir(base)
    Path("rows.jsonl").write_text(ROWS)
    options = {**WRITTEN, "num_beams": 1 if "backend" in change else 2}
    with monkeypatch.context() as patch:
        _kill_after(patch, 3)
        with pytest.raises(Killed):
            evaluate(str(base), "figures.json", **options)
    if not change:
        settings = base / "generation_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": [256, 10]}))
    kept = _kill_after(monkeypatch, 99)
    evaluate(str(base), "figures.json", **{**options, **change})
    assert sorted(kept) == list(range(7))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("perplexity", torch.float32),
        ("choices", torch.float32),
        ("harness", torch.bfloat16),
        ("number", torch.bfloat16),
    ],
)
def test_only_scores_take_the_faster_number_format(
    task: str, expected: torch.dtype, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama").bfloat16().save_pretrained(base)
    monkeypatch.setattr(devices, "bf16_is_faster", lambda kind: False)
    more = {"harness": ("piqa",)} if task == "harness" else {}
    settings = EvaluateConfig(task=task, data="rows.jsonl", device="cpu", backend="transformers", **more)
    assert next(open_model(resolve(base), None, settings).model.parameters()).dtype == expected

"""`generate --data`: a model, a package or an adapter answers a file of prompts.

The answers appear in a file of rows once all are there; until then `FILE.partial` keeps them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import GenerateConfig, SamplingConfig, WriteConfig
from shears.config.resolve import build
from shears.data.example import Row
from shears.data.rows import as_json_lines
from shears.errors import InputError
from shears.models.devices import device_of, resolved_precision
from shears.models.load import load_with_adapter
from shears.models.ref import AnyModel, ModelRef, resolve_with
from shears.models.tokenizers import end_tokens, load_tokenizer
from shears.records.artifacts import as_data, refuse_changes, write_text
from shears.records.folders import check_writable
from shears.records.journal import append_row, read_rows
from shears.records.paths import expanded, file_fingerprint
from shears.records.trained_form import trained_form
from shears.runtime.choice import Wanted, native_backend, package_backend
from shears.runtime.generation.backend import Backend
from shears.runtime.generation.grammar import Grammars, Schema, schema_text
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.loading import generation_settings
from shears.writing.prompts import PromptAnswer, read_prompts, respondent_of
from shears.writing.writer import Author, TextRow, written_rows


def answer_file(
    model: AnyModel,
    data: str,
    output: str | Path,
    adapter: str | Path | None = None,
    *,
    json_schema: Schema | str | None = None,
    **config: Any,
) -> Path:
    """Write the rows of `data`, each with the model's answer, to the JSONL file `output`; return it.

    A row gets `generated` and `cut`, true if the answer is as long as allowed. Rows are asked as
    those of the model's training, without one in its chat template. Every answer that is not cut
    follows `json_schema` (a mapping or its text). Other keywords are the fields of `GenerateConfig`.
    An interrupted call continues. InputError for a row that asks nothing, a schema that is not
    supported, an output that is there, and for kept answers of another call.
    """
    settings = build(GenerateConfig, "generate", config)
    path = expanded(output)
    if path.exists():
        raise InputError(f"the output must not exist yet, got {path}; name another file or delete this one")
    check_writable(path)
    schema = None if json_schema is None else schema_text(json_schema)
    ref = resolve_with(model, adapter, settings.dtype)
    form = trained_form(adapter, ref.folder)
    prompts = read_prompts(data, WriteConfig(), form)
    parts = sorted(Path(adapter).glob("*.safetensors")) if adapter is not None else []
    asked = {
        **{name: value for name, value in as_data(settings).items() if name != "device"},
        "base_fingerprint": ref.fingerprint,
        "adapter_fingerprint": file_fingerprint(*parts) if parts else None,
        "prompts_sha256": prompts.fingerprint,
        "form": None if form is None else form.as_record(),
        **({} if schema is None else {"json_schema": schema}),
    }
    journal = path.with_name(f"{path.name}.partial")
    _refuse_others(journal, asked)

    def open_author() -> tuple[Author[PromptAnswer], Backend]:
        backend, tokenizer, ends = _open(ref, adapter, settings)
        sampling = build(SamplingConfig, "generate", settings.model_dump(include=set(SamplingConfig.model_fields)))
        grammar = None if schema is None else Grammars(tokenizer, backend.vocab_size, ends).of_schema(schema)
        respondent = respondent_of(prompts, tokenizer, ends, backend.max_length, sampling, grammar)
        if not journal.is_file():
            append_row(journal, {"asked": asked})
        return respondent, backend

    plan = prompts.plan(WriteConfig())
    rows = written_rows(plan, journal, open_author)
    answered = [_answered(source, row) for source, row in zip(prompts.rows, rows, strict=True)]
    write_text(path, as_json_lines(answered))
    journal.unlink()
    return path


def _answered(source: Row, row: TextRow) -> Row:
    text = row["messages"][-1]["content"] if "messages" in row else row["completion"]
    return {**source, "generated": text, "cut": row["cut"]}


def _refuse_others(journal: Path, asked: Mapping[str, Any]) -> None:
    """Raise InputError for a journal of another call, or of something else."""
    if journal.exists():
        first = next(iter(read_rows(journal)), None) if journal.is_file() else None
        before = first.get("asked") if isinstance(first, dict) else None
        if not isinstance(before, dict):
            raise InputError(f"{journal} must not exist or hold answers of an interrupted call; move it")
        refuse_changes(journal, before, asked)


def _open(
    ref: ModelRef, adapter: str | Path | None, settings: GenerateConfig
) -> tuple[Backend, PreTrainedTokenizerBase, frozenset[int]]:
    """Return what computes: the native decoder where it covers the model, and the end tokens."""
    if ref.is_package:
        tokenizer = load_tokenizer(ref)
        return package_backend(ref, settings.dtype), tokenizer, end_tokens(tokenizer, generation_settings(ref.folder))
    network, tokenizer = load_with_adapter(ref, adapter, settings.dtype, settings.device)
    precision = resolved_precision("auto" if settings.dtype == "auto" else settings.dtype, device_of(network))
    native = native_backend(network, Wanted(precision=precision, independent=False))
    ends = end_tokens(tokenizer, getattr(network, "generation_config", None))
    return native or TransformersBackend(network), tokenizer, ends

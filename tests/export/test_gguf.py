"""Format gguf: the file holds the model's weights, sizes, tokenizer and template, for llama.cpp and for ourselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, dequantize, quantize
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from shears import export_adapter, inspect
from shears.adapt.train import train
from shears.config import ExportConfig
from shears.errors import InputError
from shears.export.gguf import LAYOUTS, VALUES, planned_gguf_bytes
from shears.models.load import load_model
from shears.models.ref import load_tokenizer, resolve
from shears.runs.shapes import shape_of
from tests.export.made import IDS, half_sparse, half_sparse_with_merge, super_adapter
from tests.tiny import END, tiny_model, tiny_tokenizer
from tests.training.small_training import SETTINGS

TEXTS = ["Hello, world!!", "  3 + 14 = 17\n", "déjà vu!", END]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip


def exported(folder: Path, source: Path, **options: Any) -> Path:
    return export_adapter(source, folder / "gguf", format="gguf", **options)


def tensors(file: Path) -> dict[str, tuple[Kind, np.ndarray]]:
    """Return type and values of every tensor, as the gguf package reads and dequantizes them."""
    return {each.name: (each.tensor_type, dequantize(each.data, each.tensor_type)) for each in GGUFReader(file).tensors}


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = load_model(folder, "fp32", "cpu")(IDS).logits
    return result


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("llama_untied", {}),
        ("mistral", {"sliding_window": None}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_the_model_is_read_back_with_equal_logits(name: str, changes: Any, tmp_path: Path) -> None:
    source = half_sparse_with_merge(tmp_path / "model", name, **changes)
    folder = exported(tmp_path, source, dtype="fp32")
    back = resolve(folder)
    torch.testing.assert_close(logits(back.folder), logits(source))
    facts = inspect(folder)
    assert facts["kind"] == "GGUF model"
    assert facts["parameters"] == load_model(source).num_parameters()
    tokenizer, before = load_tokenizer(back), load_tokenizer(resolve(source))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    assert tokenizer.eos_token == before.eos_token


@pytest.mark.parametrize(
    ("values", "embeddings"), [("auto", "keep"), ("bf16", "keep"), ("int8", "int8"), ("int4", "int4"), ("int4", "keep")]
)
def test_every_tensor_is_that_of_the_model_rounded_by_the_gguf_package(
    values: str, embeddings: str, tmp_path: Path
) -> None:
    source = half_sparse_with_merge(tmp_path / "model", "qwen3")
    folder = exported(tmp_path, source, dtype=values, embedding_dtype=embeddings)
    found = tensors(folder / "model.gguf")
    state = AutoModelForCausalLM.from_pretrained(source).state_dict()
    names = {"blk.1.ffn_down": "model.layers.1.mlp.down_proj", "blk.0.attn_q": "model.layers.0.self_attn.q_proj",
             "token_embd": "model.embed_tokens", "blk.0.attn_norm": "model.layers.0.input_layernorm"}  # fmt: skip
    for short, name in names.items():
        kind, weights = found[f"{short}.weight"]
        plain = state[f"{name}.weight"].numpy()
        expected = {"token_embd": VALUES[embeddings] if embeddings != "keep" else
                    Kind.BF16 if values == "bf16" else Kind.F16,
                    "blk.0.attn_norm": Kind.F32}.get(short, VALUES[values])  # fmt: skip
        if plain.shape[-1] % 32:  # rows of 48 inputs are no whole blocks
            expected = Kind.BF16 if values == "bf16" else Kind.F16
        assert kind == expected, short
        np.testing.assert_array_equal(weights, dequantize(quantize(plain, kind), kind))
    settings = ExportConfig(format="gguf", dtype=values, embedding_dtype=embeddings)
    shape = shape_of(str(source))
    assert shape is not None
    assert planned_gguf_bytes(shape.specs, settings) == sum(
        each.n_bytes for each in GGUFReader(folder / "model.gguf").tensors
    )


@pytest.mark.parametrize("sparse_adapter", [False, True])
def test_an_adapter_is_merged_as_format_merged_does(sparse_adapter: bool, tmp_path: Path) -> None:
    base = half_sparse_with_merge(tmp_path / "base")
    adapter = super_adapter(tmp_path / "adapter", base, sparse_adapter)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged")
    folder = exported(tmp_path, adapter, dtype="fp32")
    torch.testing.assert_close(logits(resolve(folder).folder), logits(merged))
    record = json.loads((folder / "gguf.json").read_text())
    assert record["base"] == str(base)
    assert record["file_bytes"] == (folder / "model.gguf").stat().st_size
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "README.md", "gguf.json", "model.gguf"]


@pytest.mark.parametrize(("name", "head_dim"), [("llama", 16), ("qwen3", 128)])
def test_weights_trained_on_q4_0_are_written_as_they_were_trained(name: str, head_dim: int, tmp_path: Path) -> None:
    """Oracle: the gguf package reads the file; the merged model holds the weights of the training's forward."""
    base = half_sparse_with_merge(tmp_path / "base", name, hidden_size=64, intermediate_size=96, head_dim=head_dim)
    rows = [{"prompt": f"{a}+1=", "completion": f" {a + 1}"} for a in range(18)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {**SETTINGS, "learning_rate": 0.05, "quantize_aware": "q4_0"}
    adapter = train(base, tmp_path / "adapter", data=str(tmp_path / "rows.jsonl"), **options)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged", sub_adapter="maximal")
    folder = exported(tmp_path, adapter, sub_adapter="maximal")
    state = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    found = tensors(folder / "model.gguf")
    for short, long in {"attn_v": "self_attn.v_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}.items():
        kind, weights = found[f"blk.1.{short}.weight"]
        assert kind == Kind.Q4_0
        plain = state[f"model.layers.1.{long}.weight"].numpy()
        assert (plain == 0).mean() > 0.4
        np.testing.assert_array_equal(weights, plain)
        assert (weights != dequantize(quantize(plain, kind), kind)).any()  # rounding again would move some
    back = resolve(folder)
    queries = "model.layers.0.self_attn.q_proj.weight"  # turned for llama.cpp, and turned back
    assert torch.equal(load_model(back.folder, "fp32", "cpu").get_parameter(queries), state[queries])
    other = export_adapter(adapter, tmp_path / "int4", format="gguf", sub_adapter="maximal", dtype="int4")
    assert (other / "model.gguf").read_bytes() == (folder / "model.gguf").read_bytes()
    with pytest.raises(InputError, match="would round again"):
        export_adapter(adapter, tmp_path / "other", format="gguf", dtype="int8")
    with pytest.raises(InputError, match="blocks of 32"):
        export_adapter(adapter, tmp_path / "other", format="package")


def test_llama3_positions_are_written_as_factors(tmp_path: Path) -> None:
    source = half_sparse_with_merge(tmp_path / "model", "llama", rope_parameters=LLAMA3)
    factors = tensors(exported(tmp_path, source) / "model.gguf")["rope_freqs.weight"][1]
    model = tiny_model("llama", rope_parameters=LLAMA3)
    plain = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(plain.numpy() / factors, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)
    assert factors[0] == 1
    assert factors[-1] == 8


def test_a_tokenizer_of_characters_and_bytes_gets_the_order_of_its_merges_as_scores(tmp_path: Path) -> None:
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab"]
    vocabulary = {word: number for number, word in enumerate(words)}
    model = models.BPE(vocabulary, [("a", "b"), ("▁", "ab")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    source = half_sparse(tmp_path / "model", vocab_size=len(words))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(source)
    fields = GGUFReader(exported(tmp_path, source) / "model.gguf").fields
    scores = dict(zip(words, fields["tokenizer.ggml.scores"].contents(), strict=True))
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert scores["ab"] > scores["▁ab"] > scores["a"]
    assert fields["tokenizer.ggml.token_type"].contents()[:3] == [2, 6, 6]
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("architecture", f"format gguf supports {', '.join(LAYOUTS)}, got gpt2"),
        ("split", "format gguf supports tokenizers that split text like gpt-2, "),
        ("kind", "format gguf supports tokenizers of kind BPE, got WordLevel"),
        ("large", r"F16 holds numbers up to 65504, model\..* has a larger one; use --dtype bf16"),
        ("words", "needs an embedding for every token"),
    ],
)
def test_what_llama_cpp_lacks_is_one_line_and_nothing_is_written(change: str, words: str, tmp_path: Path) -> None:
    source = half_sparse_with_merge(tmp_path / "model", "gpt2" if change == "architecture" else "llama")
    if change == "large":
        model = load_model(source)
        model.model.embed_tokens.weight.data[0, 0] = 1e5
        model.save_pretrained(source)
    if change == "words":
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["one", "more"])
        tokenizer.save_pretrained(source)
    if change in ("split", "kind"):
        content = json.loads((source / "tokenizer.json").read_text())
        if change == "split":
            content["pre_tokenizer"] = {"type": "WhitespaceSplit"}
        else:
            content["model"] = {"type": "WordLevel", "vocab": content["model"]["vocab"], "unk_token": END}
        (source / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as caught:
        exported(tmp_path, source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "gguf").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("llama_untied", {"rope_parameters": LLAMA3}),
        ("mistral", {}),
        ("qwen3", {}),
    ],
)
def test_llama_cpp_computes_our_logits_and_finds_our_tokens(name: str, changes: Any, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    source = half_sparse_with_merge(tmp_path / "model", name, **changes)
    file = str(exported(tmp_path, source, dtype="fp32") / "model.gguf")
    network, tokenizer = load_model(source, "fp32", "cpu"), load_tokenizer(resolve(source))
    theirs = llama_cpp.Llama(file, n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    for text in TEXTS:
        tokens = tokenizer(text)["input_ids"]
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == tokens
        theirs.reset()
        theirs.eval(tokens[:8])  # mistral's window is longer than that
        with torch.no_grad():
            ours = network(torch.tensor([tokens[:8]])).logits[0].numpy()
        np.testing.assert_allclose(theirs.scores[: len(ours)], ours, atol=2e-3)  # its cache holds fp16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "megabytes", "apart"), [("auto", 271, 0.01), ("int8", 145, 0.02), ("int4", 78, 0.1)]
)
def test_llama_cpp_answers_like_the_file_read_back(values: str, megabytes: int, apart: float, tmp_path: Path) -> None:
    """The embedded model: nats a token between llama.cpp and our fp32 arithmetic on the file's weights."""
    llama_cpp = pytest.importorskip("llama_cpp")
    embeddings = "keep" if values == "auto" else values
    folder = export_adapter("smollm2-135m", tmp_path / "gguf", format="gguf", dtype=values, embedding_dtype=embeddings)
    assert (folder / "model.gguf").stat().st_size / 1e6 == pytest.approx(megabytes, abs=1)
    back = resolve(folder)
    tokenizer = load_tokenizer(back)
    chat = [{"role": "user", "content": "Tom has 12 apples and eats 5. How many are left?"}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    tokens = load_tokenizer(resolve("smollm2-135m"))(text)["input_ids"]
    theirs = llama_cpp.Llama(str(folder / "model.gguf"), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    assert tokenizer(text)["input_ids"] == tokens == theirs.tokenize(text.encode(), add_bos=False, special=True)
    theirs.eval(tokens)
    with torch.no_grad():
        ours = load_model(back, "fp32", "cpu")(torch.tensor([tokens])).logits[0].log_softmax(-1)
    scores = torch.from_numpy(np.array(theirs.scores[: len(tokens)])).log_softmax(-1)
    divergence = (ours.exp() * (ours - scores)).sum(-1).mean().item()
    assert divergence < apart


@pytest.mark.slow
def test_llama_cpp_gives_the_tokens_of_a_model_trained_on_q4_0(tmp_path: Path) -> None:
    """The embedded model after two steps: greedy answers of transformers on the merged weights, where they are clear.

    llama.cpp rounds activations to 8 bits, so two words that are nearly as likely may change places.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    options = {"max_steps": 2, "warmup_steps": 1, "learning_rate": 1e-3, "quantize_aware": "q4_0", "template": "chat"}
    adapter = train("smollm2-135m", tmp_path / "adapter", data="arithmetic:train", **options)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged")
    file = exported(tmp_path, adapter, embedding_dtype="int8") / "model.gguf"
    network: Any = load_model(merged, "fp32", "cpu")
    tokenizer = load_tokenizer(resolve(merged))
    theirs = llama_cpp.Llama(str(file), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    clear = count = 0
    for question in ("Tom has 12 apples and eats 5. How many are left?", "What is 7 times 8?", "Name a colour."):
        chat = [{"role": "user", "content": question}]
        tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            whole = network.generate(torch.tensor([tokens]), max_new_tokens=16, do_sample=False)
            logits = network(whole).logits[0, len(tokens) - 1 : -1]
        theirs.reset()
        theirs.eval(whole[0, :-1].tolist())
        found = theirs.scores[len(tokens) - 1 : whole.shape[1] - 1].argmax(-1)
        first, second = logits.topk(2).values.T
        is_clear = (first - second > 0.5).numpy()
        np.testing.assert_array_equal(found[is_clear], logits.argmax(-1).numpy()[is_clear])
        clear, count = clear + is_clear.sum(), count + len(is_clear)
    assert clear > 0.7 * count

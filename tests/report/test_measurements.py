"""The sections Accuracy, Examples and Speed."""

from pathlib import Path

from tests.report.made import MODELS, Reader, page_of, record, records


def spread(middle: float) -> dict[str, float]:
    """Return a median with a range of a tenth of it on both sides."""
    return {"median": middle, "min": 0.9 * middle, "max": 1.1 * middle}


def test_a_bench_says_how_fast_the_package_is(tmp_path: Path) -> None:
    """The faster of the two dense models in transformers counts; our own dense model is in the table only."""
    speeds = {"package (bf16, native)": 120.0, "dense, our kernels (bf16)": 100.0, "dense, transformers": 20.0,
              "dense, transformers, oneDNN off": 40.0}  # fmt: skip
    contestants = [
        {"name": name, "memory_bytes": 1e8, "decode_tokens_per_second": spread(speed),
         "prefill_tokens_per_second": spread(10 * speed), "time_to_first_token_seconds": spread(0.25)}
        for name, speed in speeds.items()
    ]  # fmt: skip
    ratios = [{"over": name, "decode": spread(120 / speed)} for name, speed in list(speeds.items())[1:]]
    bench = {"package": "runs/mine/package", "cpu": "a processor", "threads": 1, "rounds": 5, "prompt_tokens": 512,
             "new_tokens": 64, "contestants": contestants, "ratios": ratios}  # fmt: skip
    text = Reader(page_of(tmp_path, records() | {"bench.json": bench})).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "weights than the dense model, decodes 3.00x as fast as it in transformers." in text
    assert "3.00xas fast as the dense model in transformers, decoding2.70x to 3.30x over 5 rounds, 1 thread" in text
    assert "runs/mine/package on a processor, 1 thread: decoding 64 tokens after a prompt" in text
    assert "dense, transformers20 (18 to 22)100.0 MB" in text
    assert "dense, transformers200 (180 to 220)250 (225 to 275)" in text  # of reading, and the first token


def test_an_answer_without_a_text_is_shown_as_no_text(tmp_path: Path) -> None:
    files = records()
    files["evaluation/sparse.json"]["records"][2] |= {"output": " ", "prediction": None}
    assert "no text → no answer found" in page_of(tmp_path, files)


def test_rare_patterns_of_right_answers_are_counted_together(tmp_path: Path) -> None:
    """Four models have sixteen patterns; here the one of number n occurs n + 1 times."""
    files, names = records(), [*MODELS, "dense-lora"]
    files["evaluation.json"]["models"].append({**files["evaluation.json"]["models"][0], "name": "dense-lora"})
    patterns = [number for number in range(16) for _ in range(number + 1)]
    for place, name in enumerate(names):
        hits = [number >> place & 1 for number in patterns]
        path = f"evaluation/{name.replace(' + ', '_').replace('-', '_')}.json"
        files[path] = {"records": [record(index, name, hit, "Question") for index, hit in enumerate(hits)]}
    text = Reader(page_of(tmp_path, files)).text
    assert "16rightrightrightright15wrongrightrightright" in text
    assert "9wrongwrongwrongright368 other patterns" in text  # 1 + 2 + ... + 8

"""Cached targets are the teacher's, wherever an example stands; they are computed once, and a kill loses a shard."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.errors import InputError
from shears.training import cached_teacher as cached
from shears.training.cached_teacher import CachedTeacher, TargetCacheKey, bytes_per_position, cache_targets
from shears.training.distillation import Loss
from shears.training.losses import labelled_positions
from shears.training.teacher import LiveTeacher
from shears.training.trainer import BLANK, Collator, NumberedExamples
from tests.oracles import distillation as oracle
from tests.tiny import VOCABULARY, tiny_model

LENGTHS = (9, 4, 12, 7, 5, 11)
PACKED = Collator(0, 20)
PADDED = Collator(0, None)


def rows_of(lengths: tuple[int, ...] = LENGTHS) -> list[Tokenized]:
    """Examples whose first third is a prompt."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Tokenized(row, [IGNORED] * (1 + len(row) // 3) + row[1 + len(row) // 3 :]) for row in ids]


ROWS = rows_of()
BATCH = [3, 0, BLANK, 5, 2, 4]


def asked(top_k: int = 8) -> TargetCacheKey:
    return TargetCacheKey("teacher", "fp32", top_k)


def teacher_on(collate: Collator) -> Callable[[], tuple[LiveTeacher, Collator]]:
    return lambda: (LiveTeacher(lively(seed=1), "fp32"), collate)


def lively(seed: int) -> Any:
    """A random model whose predictions are far from uniform."""
    model = tiny_model("llama_untied", seed)
    with torch.no_grad():
        model.get_parameter("lm_head.weight").mul_(40)
    return model


def made(folder: Path, top_k: int = 8) -> CachedTeacher:
    return cache_targets(folder, ROWS, asked(top_k), VOCABULARY, teacher_on(PACKED))


def batch_of(collate: Collator, numbers: list[int] = BATCH) -> dict[str, Tensor]:
    examples = NumberedExamples(ROWS)
    return collate([examples[number] for number in numbers])


def alone(model: Any, number: int) -> Tensor:
    """The oracle: an example by itself; its logits before each of its labels."""
    row = ROWS[number]
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([row.input_ids])).logits
    before = [place - 1 for place, label in enumerate(row.labels) if label != IGNORED]
    return logits[0, before]


@pytest.mark.parametrize("collate", [PACKED, PADDED, Collator(0, None, behind=True)])
def test_an_examples_targets_are_those_it_has_alone_wherever_it_stands(collate: Collator, tmp_path: Path) -> None:
    teacher = made(tmp_path)
    batch = batch_of(collate)
    wanted = labelled_positions(batch["labels"])
    predicted = teacher.targets(batch, wanted)
    examples = batch.get("examples", torch.arange(len(wanted))[:, None].expand(wanted.shape))
    numbers = batch["numbers"][examples[wanted]]
    model = lively(seed=1)
    for number in set(BATCH) - {BLANK}:
        expected = torch.log_softmax(alone(model, number), -1).topk(8, -1)
        here = numbers == number
        assert torch.equal(predicted.indices[here], expected.indices)
        torch.testing.assert_close(
            predicted.log_probs[here], expected.values, rtol=2**-10, atol=1e-4
        )  # fp16 has 11 bits


def loss_and_gradient(loss: Loss, collate: Collator) -> tuple[Tensor, Tensor]:
    student = lively(seed=2).requires_grad_(False).train()
    weight = student.get_parameter("model.layers.0.mlp.up_proj.weight").requires_grad_()
    losses = loss.of_tokens(student, batch_of(collate), 1.0, in_pieces=True)
    (gradient,) = torch.autograd.grad(losses.losses.sum(), weight)
    return losses.losses.detach(), gradient


def test_all_words_give_the_loss_and_the_gradient_of_the_teacher_itself(tmp_path: Path) -> None:
    live = LiveTeacher(lively(seed=1), "fp32")
    losses, gradient = loss_and_gradient(Loss(live, 0.5, 0.5), PACKED)
    with_cache, its_gradient = loss_and_gradient(Loss(made(tmp_path, top_k=VOCABULARY), 0.5, 0.5), PADDED)
    torch.testing.assert_close(with_cache.sum(), losses.sum(), rtol=1e-4, atol=0)  # log-probabilities of 11 bits
    torch.testing.assert_close(its_gradient, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_fewer_words_come_closer_the_more_they_are(tmp_path: Path) -> None:
    live = LiveTeacher(lively(seed=1), "fp32")
    _, gradient = loss_and_gradient(Loss(live, 1.0, 0.0), PACKED)
    errors = [
        float((loss_and_gradient(Loss(made(tmp_path, top_k=count), 1.0, 0.0), PACKED)[1] - gradient).norm())
        for count in (2, 16, 128)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.05 * float(gradient.norm())


def test_the_loss_weighs_labels_and_teacher(tmp_path: Path) -> None:
    """Against a literal restatement, example by example; BLANK and prompts lose nothing."""

    def kl(student_logits: Tensor, teacher_logits: Tensor) -> float:
        pair = (oracle.probabilities(logits.tolist()) for logits in (student_logits, teacher_logits))
        return oracle.divergence(*pair)

    teacher, student = lively(seed=1), lively(seed=2)
    loss = Loss(made(tmp_path, top_k=VOCABULARY), 0.25, 0.75)
    losses = loss.of_tokens(student.train(), batch_of(PACKED), 1.0, in_pieces=True)
    expected = 0.0
    for number in set(BATCH) - {BLANK}:
        said, says = alone(student, number), alone(teacher, number)
        labels = [label for label in ROWS[number].labels if label != IGNORED]
        right = torch.nn.functional.cross_entropy(said, torch.tensor(labels), reduction="sum")
        expected += 0.75 * float(right) + 0.25 * sum(map(kl, said, says))
    assert float(losses.losses.detach().sum()) == pytest.approx(expected, rel=1e-4)
    blank = batch_of(PADDED, [BLANK, BLANK])
    of_blank = Loss(made(tmp_path, top_k=8), 1.0, 0.0).of_tokens(student, blank, 1.0, in_pieces=True)
    assert float(of_blank.losses.detach().sum()) == 0


def test_targets_are_computed_once_for_the_same_teacher_examples_and_words(tmp_path: Path) -> None:
    made(tmp_path)
    cache_targets(tmp_path, ROWS, asked(), VOCABULARY, lambda: pytest.fail("the teacher was loaded again"))
    for other in (TargetCacheKey("another", "fp32", 8), asked(top_k=4)):
        cache_targets(tmp_path, ROWS, other, VOCABULARY, teacher_on(PADDED))
    cache_targets(tmp_path, ROWS[:-1], asked(), VOCABULARY, teacher_on(PADDED))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("bound", "value"), [("SHARD_BYTES", 10 * bytes_per_position(8, VOCABULARY)), ("SHARD_POSITIONS", 10)]
)
def test_a_kill_loses_one_shard(bound: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, bound, value)
    cache_targets(tmp_path / "whole", ROWS, asked(), VOCABULARY, teacher_on(PADDED))
    save = cached._save
    saved: list[str] = []

    def failing(tensors: Any, path: Path) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path.name)
        save(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(cached, "_save", failing)
        with pytest.raises(KeyboardInterrupt):
            cache_targets(tmp_path / "cut", ROWS, asked(), VOCABULARY, teacher_on(PADDED))
    again: list[str] = []

    def noted(tensors: Any, path: Path) -> None:
        again.append(path.name)
        save(tensors, path)

    monkeypatch.setattr(cached, "_save", noted)
    cache_targets(tmp_path / "cut", ROWS, asked(), VOCABULARY, teacher_on(PADDED))
    assert len(saved) == 2
    assert again
    assert not set(saved) & set(again)
    [whole], [cut] = (list((tmp_path / name).iterdir()) for name in ("whole", "cut"))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in cut.iterdir()
    }


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    positions = sum(label != IGNORED for row in ROWS for label in row.labels)
    with pytest.raises(InputError, match=rf"\({positions} positions x 32 bytes\) below .* where 0 MB are free"):
        made(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change(name: str, tensor: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Change one of a shard's tensors."""

    def changed(path: Path) -> None:
        tensors = load_file(path)
        save_file({**tensors, name: tensor(tensors[name].clone())}, path)

    return changed


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a torn shard": ("targets-00001.safetensors", cut),
    "an empty shard": ("targets-00000.safetensors", lambda path: path.write_bytes(b"")),
    "a missing shard": ("targets-00001.safetensors", Path.unlink),
    "another file as a shard": ("targets-00001.safetensors", lambda path: save_file({"a": torch.ones(1)}, path)),
    "words beyond the vocabulary": ("targets-00000.safetensors", change("indices", lambda old: old + VOCABULARY)),
    "words below zero": ("targets-00000.safetensors", change("indices", lambda old: old * 0 - 1)),
    "another dtype": ("targets-00001.safetensors", change("log_probs", Tensor.float)),
    "fewer words": ("targets-00001.safetensors", change("log_probs", lambda old: old[:, :4].contiguous())),
    "fewer positions": ("targets-00000.safetensors", change("indices", lambda old: old[1:].contiguous())),
    "nan": ("targets-00001.safetensors", change("log_probs", lambda old: old * float("nan"))),
    "probabilities above one": ("targets-00001.safetensors", change("log_probs", torch.neg)),
    "an empty record": ("teacher.json", lambda path: path.write_text("{}")),
    "a torn record": ("teacher.json", cut),
    "a record of fewer shards": ("teacher.json", lambda path: path.write_text('{"num_shards": 1}')),
    "a record of many shards": ("teacher.json", lambda path: path.write_text('{"num_shards": 1000000000}')),
    "a record of another type": ("teacher.json", lambda path: path.write_text('{"num_shards": "2"}')),
    "no record": ("teacher.json", Path.unlink),
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*/*")}


def made_in_shards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> CachedTeacher:
    monkeypatch.setattr(cached, "SHARD_POSITIONS", 20)
    return made(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_targets_are_computed_anew_which_one_line_says(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made_in_shards(tmp_path, monkeypatch)
    whole = files_of(tmp_path)
    name, spoil = DAMAGES[damage]
    spoil(next(tmp_path.glob("*")) / name)
    with caplog.at_level("WARNING", logger="shears"):
        made_in_shards(tmp_path, monkeypatch)
    assert files_of(tmp_path) == whole
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["computed anew" in warning for warning in warnings] == [True]
    cache_targets(tmp_path, ROWS, asked(), VOCABULARY, lambda: pytest.fail("the teacher was loaded again"))


@given(name=st.sampled_from(("targets-00000.safetensors", "teacher.json")), kept=st.floats(0, 1, exclude_max=True))
@settings(max_examples=25)
def test_targets_cut_at_any_byte_are_computed_anew(
    name: str, kept: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    made(folder)
    whole = files_of(folder)
    [path] = folder.glob(f"*/{name}")
    data = path.read_bytes().rstrip()
    path.write_bytes(data[: int(len(data) * kept)])
    made(folder)
    assert files_of(folder) == whole


def test_a_damaged_shard_of_an_interrupted_run_is_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in_shards(tmp_path / "whole", monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(cached, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made_in_shards(tmp_path / "cut", monkeypatch)
    [shard] = (tmp_path / "cut").glob("*/targets-00001.safetensors")
    cut(shard)
    made_in_shards(tmp_path / "cut", monkeypatch)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_the_bytes_of_a_position_are_those_of_the_files(tmp_path: Path) -> None:
    made(tmp_path)
    [file] = tmp_path.glob("*/*.safetensors")
    tensors = load_file(file)
    positions = len(tensors["log_probs"])
    assert sum(t.nbytes for t in tensors.values()) == positions * bytes_per_position(8, VOCABULARY)
    assert bytes_per_position(64, 100_000) == 64 * 6

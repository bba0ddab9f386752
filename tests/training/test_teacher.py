"""A teacher's targets are its predictions, computed once and kept in one file."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shears.config import TrainConfig
from shears.data.examples import IGNORED, Tokenized
from shears.errors import InputError
from shears.models.fetching import cache_folder
from shears.training.teacher import FOLDER, TeacherSource, TeacherTargets, find_teacher, teacher_targets
from tests.tiny import VOCABULARY, save_tiny

ROWS = [
    Tokenized(list(range(start, start + length)), [IGNORED] * 2 + list(range(start + 2, start + length)))
    for start, length in enumerate((5, 12, 3, 7, 9), start=9)
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherSource:
    return find_teacher(save_tiny(tmp_path_factory.mktemp("teacher") / "dense", initializer_range=0.2))


def targets(teacher: TeacherSource, top_k: int, rows: list[Tokenized] = ROWS) -> TeacherTargets:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shears.training.teacher.TOP_K", top_k)
        return teacher_targets(teacher, rows, 0, TrainConfig(data="-", device="cpu", precision="fp32"))


def files() -> set[Path]:
    return {*(cache_folder() / FOLDER).glob("*")}


@pytest.mark.parametrize("top_k", [8, 2 * VOCABULARY])
def test_an_examples_targets_are_those_it_has_alone_in_any_batch(teacher: TeacherSource, top_k: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher.model.folder)
    kept = targets(teacher, top_k)
    for numbers in ([0], [3, 1], [4, 0, 2]):
        found = kept.of(torch.tensor(numbers))
        with torch.no_grad():
            logits = [model(torch.tensor([ROWS[number].input_ids])).logits[0, 1:-1] for number in numbers]
        expected = torch.cat(logits).log_softmax(-1)
        assert found.indices.shape[1] == min(top_k, VOCABULARY)
        likeliest = expected.topk(found.indices.shape[1]).values
        torch.testing.assert_close(found.log_probs.float(), likeliest, rtol=2e-3, atol=2e-3)  # fp16 in the file
        torch.testing.assert_close(expected.gather(-1, found.indices), likeliest, rtol=1e-4, atol=1e-4)


def test_they_are_computed_once_for_the_same_teacher_examples_and_words(
    teacher: TeacherSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files()
    first = targets(teacher, 5)
    [made] = files() - before
    with monkeypatch.context() as patched:
        patched.setattr(TeacherSource, "load", lambda *_: pytest.fail("loaded again"))
        assert torch.equal(targets(teacher, 5).indices, first.indices)
    others = [
        targets(teacher, 6),
        targets(teacher, 5, ROWS[:2]),
        targets(find_teacher(save_tiny(tmp_path / "other", seed=3)), 5),
    ]
    assert len(files() - before) == 1 + len(others)
    whole = made.read_bytes()
    for damaged in (whole[:-1], whole[:9], b""):
        made.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{made.name} cannot be read"):
            targets(teacher, 5)


def test_examples_without_labels_are_not_computed(teacher: TeacherSource) -> None:
    unread = [Tokenized(row.input_ids, [IGNORED] * len(row.labels)) for row in ROWS]
    kept = targets(teacher, 4, [ROWS[0], *unread[1:4], ROWS[4]])
    assert len(kept.indices) == 3 + 7
    assert torch.equal(kept.of(torch.tensor([4])).indices, targets(teacher, 4).of(torch.tensor([4])).indices)

"""Pruning touches the linears of the blocks, exactly as much as configured, and nothing else; or it is refused."""

import pytest
import torch
from torch import Tensor, nn

from shears.config import SparsifyConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.blocks import decoder_blocks, linears, weight_oi
from shears.sparsity.prune import choose, sparsify_model
from tests.tiny import CONFIGS, LONGEST, VOCABULARY, tiny_model

TOKENS = torch.randint(0, VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = list(TOKENS.split(2))
LLAMA = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LLAMA += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def config(**keys: object) -> SparsifyConfig:
    """Return a checked configuration; InputError where it is refused."""
    return build(SparsifyConfig, "sparsify", {"method": "wanda", **keys})


def all_but(*endings: str) -> str:
    """Return a regex for `skip` of the names that end otherwise."""
    return f"(?!.*({'|'.join(endings)})$).*"


def chosen(model: nn.Module, **keys: object) -> list[str]:
    return [matrix.name for matrices in choose(model, config(**keys)).values() for matrix in matrices]


@pytest.mark.parametrize(
    ("name", "method"), [*((name, "wanda") for name in CONFIGS), ("llama", "magnitude"), ("gpt2", "magnitude")]
)
def test_every_row_of_every_linear_has_the_exact_count(name: str, method: str) -> None:
    model = tiny_model(name)
    report = sparsify_model(model, BATCHES, config(sparsity=0.4, method=method))
    prefix, blocks = decoder_blocks(model)
    assert list(report.linears) == [f"{prefix}.{linear}" for linear in linears(blocks)]
    for linear, found in report.linears.items():
        weight = weight_oi(linears(model)[linear])
        assert found.shape == tuple(weight.shape)
        assert int((weight == 0).sum()) == found.zeros
        assert ((weight == 0).sum(1) - found.zeros // weight.shape[0]).unique().tolist() in ([0], [0, 1])
    sizes = [found.size for found in report.linears.values()]
    assert sum(found.zeros for found in report.linears.values()) == round(0.4 * sum(sizes))


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (r".*layers\.0\..*,o_proj", [f"1.{name}" for name in LLAMA if not name.endswith("o_proj")]),
        ([all_but("q_proj", "k_proj"), "k_proj"], ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
        ("lm_head", [f"{block}.{name}" for block in (0, 1) for name in LLAMA]),  # dense in any case
    ],
)
def test_linears_are_skipped_by_suffix_or_whole_regex(skip: object, expected: list[str]) -> None:
    model = tiny_model("llama_untied")
    report = sparsify_model(model, BATCHES, config(skip=skip, sparsity=0.7))
    assert [name.split("layers.")[1] for name in report.linears] == expected
    assert report.achieved == pytest.approx(0.7, abs=1e-3)


def test_weights_that_blocks_share_are_pruned_and_counted_once() -> None:
    names = chosen(tiny_model("zamba"))
    assert any("layers.1.shared_transf" in name for name in names)
    assert not any("layers.3.shared_transf" in name for name in names)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"skip": "q_porj"}, r"target 'q_porj'; this model has q_proj, k_proj, .*; did you mean 'q_proj'\?"),
        ({"skip": "lm_head,.*proj"}, "the decoder blocks model.layers must have linears to prune, they have none"),
        ({"pattern": "2:4", "sparsity": 0.6}, r"2:4 needs sparsity 0\.5 and allocation uniform, got sparsity 0\.6"),
        ({"pattern": "2:4", "allocation": "sensitivity"}, "2:4 needs sparsity 0.5"),
        ({"pattern": "3:2"}, "must be N:M with 0 < N < M, got 3:2"),
        ({"pattern": "layer"}, "must be row or N:M such as 2:4, got 'layer'"),
        ({"pattern": "1:5", "sparsity": 0.8}, r"1:5 needs a multiple of 5 inputs, model\.layers\.0\.self_attn\.q_proj"),
    ],
)
def test_settings_that_do_not_fit_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sparsify_model(tiny_model("llama_untied"), BATCHES, config(**keys))


@pytest.mark.parametrize(
    ("value", "batches", "message"),
    [
        (torch.nan, BATCHES, r"weights must be finite, model\.layers\.0\.mlp\.up_proj"),
        (0.0, [], "at least one batch"),
        (0.0, [torch.full((1, 8), VOCABULARY)], f"below {VOCABULARY}, got {VOCABULARY}"),
        (0.0, [torch.zeros(1, LONGEST + 1, dtype=torch.long)], f"at most this model's context of {LONGEST}"),
    ],
)
def test_models_and_text_that_do_not_fit_are_refused(value: float, batches: list[Tensor], message: str) -> None:
    model = tiny_model()
    model.get_parameter("model.layers.0.mlp.up_proj.weight").data[0, 0] = value
    with pytest.raises(InputError, match=message):
        sparsify_model(model, batches, config())


def test_a_model_that_computes_between_its_blocks_is_refused() -> None:
    model = tiny_model("llama")
    block = decoder_blocks(model)[1][1]
    block.register_forward_pre_hook(lambda _, args, kwargs: ((args[0] / 2, *args[1:]), kwargs), with_kwargs=True)
    with pytest.raises(InputError, match="nothing may be computed between two decoder blocks"):
        sparsify_model(model, BATCHES, config())

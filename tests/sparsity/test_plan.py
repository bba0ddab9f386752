"""The chosen weights and their numbers of zeros follow the configuration, or it is refused with a reason."""

import logging

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from shears.config import SparsifyConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.models.blocks import decoder_blocks
from shears.models.blockwise.matrices import kept_dense, uncovered_parameters
from shears.sparsity.plan import Chosen, choose, linear_name, zeros_by_weight
from tests.tiny import tiny_model

LLAMA = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LLAMA += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
SHARES = st.floats(0.0, 0.99)


def config(**keys: object) -> SparsifyConfig:
    """Return a checked configuration; InputError where it is refused."""
    return build(SparsifyConfig, "sparsify", keys)


def names(model: PreTrainedModel, **keys: object) -> list[str]:
    """Return what is chosen, without the names of model and blocks: `0.mlp.up_proj`."""
    chosen = choose(model, config(**keys)).matrices
    return list(dict.fromkeys(linear_name(matrix).split("layers.")[1] for matrix in chosen))


def all_but(*endings: str) -> str:
    """Return a regex for `skip` of the names that end otherwise."""
    return f"(?!.*({'|'.join(endings)})$).*"


def counts(model: PreTrainedModel, **keys: object) -> tuple[Chosen, dict[str, int]]:
    """Return what is chosen and the numbers of zeros, under a uniform allocation."""
    settings = config(**keys)
    chosen = choose(model, settings)
    return chosen, zeros_by_weight(chosen, settings)


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        ("", [f"{block}.{name}" for block in (0, 1) for name in LLAMA]),
        (r".*layers\.0\..*,o_proj", [f"1.{name}" for name in LLAMA if not name.endswith("o_proj")]),
        (r".*layers\.0\..*,self_attn.q_proj,.*mlp.*", [f"1.{name}" for name in LLAMA[1:4]]),
        (all_but("q_proj"), ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
        ([all_but("q_proj", "k_proj"), "k_proj"], ["0.self_attn.q_proj", "1.self_attn.q_proj"]),
        ([all_but(r"\.0\.mlp\.up_proj")], ["0.mlp.up_proj"]),
        ("lm_head", [f"{block}.{name}" for block in (0, 1) for name in LLAMA]),  # dense in any case
    ],
)
def test_linears_are_skipped_by_suffix_or_whole_regex(skip: object, expected: list[str]) -> None:
    assert names(tiny_model("llama_untied"), skip=skip) == expected


def test_what_is_skipped_does_not_count() -> None:
    chosen, zeros = counts(tiny_model(), skip="down_proj,o_proj", sparsity=0.7)
    assert not any("down_proj" in name or "o_proj" in name for name in zeros)
    assert sum(zeros.values()) == round(0.7 * sum(chosen.sizes.values()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"skip": "q_porj"}, r"target 'q_porj'; this model has q_proj, k_proj, .*; did you mean 'q_proj'\?"),
        ({"skip": "down_prj"}, r"target 'down_prj'; .*; did you mean 'down_proj'\?"),
        ({"sparsity_of": "up_porj=0.4"}, r"target 'up_porj'; .*; did you mean 'up_proj'\?"),
        ({"sparsity_of": "lm_head=0.4"}, "no linear matches target 'lm_head'"),
        ({"skip": all_but("q_proj"), "sparsity_of": "k_proj=0.4"}, "target 'k_proj'; this model has q_proj; did"),
        ({"skip": "q_proj["}, r"must be a name or a regex, got 'q_proj\['"),
        ({"skip": ".*"}, r"must be linears left to prune, skip=\.\* leaves none"),
        ({"skip": "lm_head,.*proj"}, r"skip=lm_head,\.\*proj leaves none"),
    ],
)  # fmt: skip
def test_names_that_fit_nothing_are_refused_with_what_there_is(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        counts(tiny_model("llama_untied"), **keys)


def test_overridden_linears_keep_their_sparsity_and_the_others_make_up_for_it() -> None:
    chosen, zeros = counts(tiny_model(), sparsity_of="down_proj=0.25", sparsity=0.5)
    share = {name: zeros[name] / size for name, size in chosen.sizes.items()}
    assert all(share[name] == 0.25 for name in share if name.endswith("down_proj"))
    others = {round(share[name], 2) for name in share if not name.endswith("down_proj")}
    assert len(others) == 1
    assert others.pop() > 0.5
    assert sum(zeros.values()) == sum(chosen.sizes.values()) // 2


def test_the_last_name_that_matches_wins() -> None:
    chosen, zeros = counts(tiny_model(), sparsity_of=r".*mlp.*=0.25,layers.1.mlp.up_proj=0.75,o_proj=0", sparsity=0.3)
    share = {name.removeprefix("model.layers."): zeros[name] / size for name, size in chosen.sizes.items()}
    assert share["0.mlp.up_proj"] == share["1.mlp.down_proj"] == 0.25
    assert share["1.mlp.up_proj"] == 0.75
    assert share["0.self_attn.o_proj"] == 0
    _, other = counts(tiny_model(), sparsity_of=r"layers.1.mlp.up_proj=0.75,.*mlp.*=0.25", sparsity=0.3)
    assert other["model.layers.1.mlp.up_proj"] == 0.25 * 48 * 32


@pytest.mark.parametrize(
    ("keys", "reach"),
    [
        ({"sparsity_of": ".*mlp.*=0.0", "sparsity": 0.6}, r"overall sparsity 0\.6, they reach 0\.0000 to 0\.3960"),
        ({"sparsity_of": ".*=0.25", "sparsity": 0.5}, r"overall sparsity 0\.5, they reach 0\.2500 to 0\.2500"),
        ({"sparsity_of": ".*mlp.*=0.75", "sparsity": 0.25}, r"overall sparsity 0\.25, they reach 0\.4500 to"),
    ],
)
def test_an_unreachable_overall_sparsity_is_refused_with_the_reachable_range(
    keys: dict[str, object], reach: str
) -> None:
    with pytest.raises(InputError, match=reach):
        counts(tiny_model(), **keys)


MODEL = tiny_model("mixtral")


@given(overall=SHARES, one=SHARES, other=SHARES)
def test_the_overall_sparsity_is_exact_to_one_weight_or_refused(overall: float, one: float, other: float) -> None:
    sizes = choose(MODEL, config()).sizes
    held = {name: one for name in sizes if name.endswith("q_proj")}
    held |= {name: other for name in sizes if "experts.down_proj" in name}
    total, least = sum(sizes.values()), sum(sizes[name] * share for name, share in held.items())
    most = least + 0.99 * sum(size for name, size in sizes.items() if name not in held)
    assume(all(abs(end / total - overall) > 1e-6 for end in (least, most)))
    keys = {"sparsity": overall, "sparsity_of": {"q_proj": one, "experts.down_proj": other}}
    if not least < overall * total < most:
        with pytest.raises(InputError, match="they reach"):
            counts(MODEL, **keys)
        return
    chosen, zeros = counts(MODEL, **keys)
    assert abs(sum(zeros.values()) - overall * total) <= 1
    assert all(0 <= zeros[name] <= size for name, size in chosen.sizes.items())
    assert all(abs(zeros[name] - one * chosen.sizes[name]) < 1 for name in zeros if name.endswith("q_proj"))


def test_experts_are_meant_by_the_name_of_their_stack() -> None:
    model = tiny_model("mixtral")
    chosen = choose(model, config(skip=all_but("gate_up_proj")))
    assert [matrix.name for matrix in chosen.matrices] == [
        f"model.layers.{block}.mlp.experts.gate_up_proj.{expert}" for block in (0, 1) for expert in range(4)
    ]
    assert not any("gate_up_proj" in name for name in names(model, skip="experts.gate_up_proj"))
    _, zeros = counts(model, sparsity_of="gate_up_proj=0.25")
    stack = [zeros[name] for name in zeros if "gate_up_proj" in name]
    assert stack == [0.25 * 96 * 32] * 8
    with pytest.raises(InputError, match="no linear matches target 'gate_up_proj.3'; .*gate_up_proj"):
        choose(model, config(skip="gate_up_proj.3"))


def test_a_router_has_no_sparsity_of_its_own() -> None:
    with pytest.raises(InputError, match="no linear matches target 'mlp.gate'"):
        counts(tiny_model("mixtral"), sparsity_of="mlp.gate=0.5")


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "gpt_oss", "mamba", "falcon_h1"])
def test_values_are_not_looked_at(name: str) -> None:
    with torch.device("meta"):
        empty = tiny_model(name)
    assert choose(empty, config()) == choose(tiny_model(name), config())


def test_the_uncovered_share_is_that_of_all_weights_of_the_blocks() -> None:
    assert choose(tiny_model(), config()).uncovered == 0.0
    mlp, attention = 3 * 48 * 32, 2 * 32 * 32 + 2 * 16 * 32
    expected = attention / (mlp + attention)
    assert choose(tiny_model(), config(skip=".*self_attn.*")).uncovered == pytest.approx(expected)
    experts, router = 4 * mlp, 4 * 32
    found = choose(tiny_model("mixtral"), config()).uncovered
    assert found == pytest.approx(router / (experts + attention + router))


@pytest.mark.parametrize("name", ["gpt_oss", "recurrent_gemma"])
def test_stacks_of_biases_do_not_count_as_weights(name: str) -> None:
    model = tiny_model(name)
    chosen, blocks = choose(model, config()), decoder_blocks(model)[1]
    beside = sum(sum({**uncovered_parameters(block), **kept_dense(block)}.values()) for block in blocks)
    assert chosen.uncovered == pytest.approx(beside / (beside + sum(chosen.sizes.values())))


def test_routers_and_the_pruned_share_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choose(tiny_model("mixtral"), config(skip=all_but("experts.down_proj")))
    assert "0.59 % of the block weights choose experts and stay dense" in caplog.text
    assert "pruning 2 linears, 28.4 % of the block weights" in caplog.text


def test_weights_that_blocks_share_are_pruned_and_counted_once() -> None:
    model = tiny_model("zamba")
    chosen = choose(model, config())
    parameters = [model.get_parameter(matrix.parameter) for matrix in chosen.matrices]
    assert len({id(parameter) for parameter in parameters}) == len(parameters)
    assert sum(parameter.numel() for parameter in parameters) == sum(chosen.sizes.values())
    assert any("layers.1.shared_transf" in name for name in chosen.sizes)
    assert not any("layers.3.shared_transf" in name for name in chosen.sizes)

"""What is counted: non-zeros and multiply-accumulates of base and adapter, against counting by hand."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.prepare import build_space
from shears.config.search import parse_constraint
from shears.errors import InputError
from shears.searching.measure.sizes import base_macs, base_nonzeros, count_sizes, refuse_out_of_reach
from shears.searching.strategies.base import Goal
from tests.searching.adapters import make_adapter
from tests.tiny import tiny_model


def elastic_of(name: str, groups: tuple[str, ...]) -> ElasticAdapter:
    model = tiny_model(name)
    for parameter in model.parameters():
        parameter.data.view(-1)[::3] = 0.0
    space = build_space(model, groups, (4, 2))
    targets = [linear for names in space.modules.values() for linear in names]
    return make_elastic(
        get_peft_model(model, LoraConfig(r=4, target_modules=targets, fan_in_fan_out=name == "gpt2")), space
    )


def zeroed(name: str) -> nn.Module:
    model = tiny_model(name)
    for parameter in model.parameters():
        parameter.data.view(-1)[::3] = 0.0
    return model


@pytest.mark.parametrize(("name", "group"), [("llama", "up_proj"), ("llama_untied", "q_proj"), ("gpt2", "c_fc")])
def test_figures_are_those_of_the_plain_model_and_the_adapters_parameters(name: str, group: str) -> None:
    elastic, plain = elastic_of(name, (group,)), zeroed(name)
    count = count_sizes(elastic, ("parameters", "nonzeros", "macs"))
    nonzeros = sum(int((parameter != 0).sum()) for parameter in plain.parameters())
    macs = sum(int((m.weight != 0).sum()) for m in plain.modules() if isinstance(m, nn.Linear | Conv1D))
    for ranks in (elastic.space.minimal(), elastic.space.maximal()):
        size = elastic.num_parameters(ranks)
        assert count(ranks) == {"parameters": size, "nonzeros": nonzeros + size, "macs": macs + size}
    assert count_sizes(elastic, ("loss", "macs"))(elastic.space.minimal()).keys() == {"macs"}


def test_the_multiply_accumulates_are_those_of_a_forward() -> None:
    """Counted at the linears while one token goes through, head included."""
    model, counted = zeroed("llama"), [0]

    def count(linear: nn.Module, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        counted[0] += int((linear.get_parameter("weight") != 0).sum()) * inputs[0].shape[:-1].numel()

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    model(torch.tensor([[5]]))
    assert base_macs(model) == counted[0]


@pytest.mark.parametrize("name", ["mixtral", "jetmoe"])  # JetMoE calls few of its experts so
def test_a_token_uses_its_share_of_the_experts(name: str) -> None:
    model = tiny_model(name)
    config = model.config
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    stacks = sum(p.numel() for p in model.parameters() if p.ndim == 3)
    dense = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert stacks > 0
    assert base_macs(model) == dense + stacks * config.num_experts_per_tok // config.num_local_experts
    assert base_nonzeros(model) == sum(int((parameter != 0).sum()) for parameter in model.parameters())


def test_a_bound_that_no_configuration_meets_is_refused_before_anything_is_evaluated() -> None:
    elastic = elastic_of("llama", ("up_proj",))
    count, smallest = count_sizes(elastic, ("parameters",)), elastic.num_parameters(elastic.space.minimal())
    for text in (f"parameters<={smallest}", "loss<=0.1", f"parameters>={2 * smallest}"):
        refuse_out_of_reach(Goal(constraints=(parse_constraint(text),)), elastic.space, count)
    for text, end in ((f"parameters<={smallest - 1}", "smallest"), (f"parameters>={2 * smallest + 1}", "largest")):
        with pytest.raises(InputError, match=f"within reach, got {text}, and the {end} configuration has parameters"):
            refuse_out_of_reach(Goal(constraints=(parse_constraint(text),)), elastic.space, count)


def test_of_a_sparse_adapter_only_its_own_parameters_are_counted() -> None:
    elastic = make_adapter(sparse=True)
    assert count_sizes(elastic, ("loss", "parameters"))(elastic.space.minimal()).keys() == {"parameters"}
    for name in ("nonzeros", "macs"):
        with pytest.raises(InputError, match=f"{name} must be left out with a sparse adapter: merged into its zeros"):
            count_sizes(elastic, (name, "parameters"))

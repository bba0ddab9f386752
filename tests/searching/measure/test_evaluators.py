"""Evaluators: values over weights, anchors, bounds; sizes by hand; the latency of the sub-adapter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from shears.adapt.elastic import ElasticAdapter, make_elastic
from shears.adapt.groups import build_space
from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.config.search import Constraint, parse_constraint
from shears.errors import InputError
from shears.records.artifacts import read_json
from shears.runtime.native import kernels_available
from shears.searching.measure import evaluators
from shears.searching.measure.evaluators import (
    CombinedEvaluator,
    Evaluator,
    GaugedEvaluator,
    LatencyEvaluator,
    PlainEvaluator,
    as_evaluator,
    base_macs,
    base_nonzeros,
    count_sizes,
    refuse_out_of_reach,
)
from shears.searching.measure.validation import loss_evaluator
from shears.searching.stage import search
from shears.searching.strategies.base import Figures, Goal
from tests.searching.adapters import make_adapter, make_rows, make_super_adapter, walk
from tests.searching.test_stage import SETTINGS as SEARCH
from tests.tiny import tiny_model

NUM = 40
SETTINGS = SearchConfig(data="unused", precision="fp32", device="cpu", batch_size=16)


class Simulated:
    """A gauge of made values: of each configuration one a token of its first group's rank, and noise by example."""

    def __init__(self) -> None:
        self.weights = torch.full((NUM,), 3.0, dtype=torch.float64)
        self.measured: list[int] = []
        self.anchors: list[RankConfig] = []
        self.shifts: dict[int, float] = {}

    def values(self, ranks: RankConfig) -> Tensor:
        generator = torch.Generator().manual_seed(ranks["a"])
        return (
            ranks["a"]
            + self.shifts.get(ranks["a"], 0.0)
            + 0.2 * torch.randn(NUM, generator=generator, dtype=torch.float64)
        )

    def measure(self, ranks: RankConfig) -> Tensor:
        self.measured.append(ranks["a"])
        return self.values(ranks)

    def num_cut(self, ranks: RankConfig) -> None:
        return None

    def anchor(self, ranks: RankConfig) -> None:
        self.anchors.append(ranks)


def config(rank: int) -> RankConfig:
    return RankConfig({"a": rank})


def make(quality: str = "loss") -> tuple[GaugedEvaluator, Simulated]:
    gauge, elastic = Simulated(), make_adapter(blocks=2)
    elastic.num_parameters = lambda config: 10 * config["a"]  # type: ignore[method-assign]
    return GaugedEvaluator(gauge, quality, elastic), gauge


def test_figures_are_the_values_over_the_weights() -> None:
    evaluator, gauge = make()
    figures = evaluator(config(4))
    assert figures == {"loss": pytest.approx(float(gauge.values(config(4)).sum()) / (3 * NUM)), "parameters": 40}
    assert evaluator(config(4)) == figures
    assert len(gauge.measured) == 1  # what is known is not measured again


def test_plain_callables_are_evaluators_and_several_are_one() -> None:
    def objective(ranks: RankConfig) -> Figures:
        return {"loss": float(ranks["a"])}

    evaluator = as_evaluator(objective)
    assert isinstance(evaluator, PlainEvaluator)
    assert as_evaluator(evaluator) is evaluator
    evaluator.anchor(config(1))
    assert evaluator(config(3)) == {"loss": 3.0}
    gauged, gauge = make()
    both = CombinedEvaluator(
        [evaluator], lambda ranks: {"size": ranks["a"]}, expand=lambda ranks: config(2 * ranks["a"])
    )
    assert isinstance(both, Evaluator)
    assert both(config(2)) == {"loss": 4.0, "size": 4}
    both = CombinedEvaluator([gauged, evaluator], expand=lambda ranks: config(2 * ranks["a"]))
    both.anchor(config(3))
    assert gauge.anchors == [config(6)]


def test_what_breaks_a_bound_on_a_size_is_not_measured() -> None:
    gauged, gauge = make()
    goal = Goal(constraints=(Constraint("macs", "<=", 5), Constraint("loss", "<=", 0.1)))
    both = CombinedEvaluator([gauged], lambda ranks: {"macs": ranks["a"]}, goal)
    figures = [both(config(rank)) for rank in (9, 4, 6)]
    assert [each.get("loss") is None for each in figures] == [True, False, True]
    assert figures[0] == {"macs": 9}
    assert gauge.measured == [4]


def test_on_a_model_a_cache_of_hidden_states_gives_the_same_bits() -> None:
    adapter, rows = make_super_adapter(), make_rows(NUM)
    whole = loss_evaluator(adapter, rows, SETTINGS.model_copy(update={"cache_budget": "0"}))
    prefix = loss_evaluator(adapter, rows, SETTINGS)
    best = adapter.elastic.space.heuristic()
    for ranks in walk(adapter.elastic.space, 6):
        prefix.anchor(best)
        assert prefix(ranks) == whole(ranks)
        best = min(best, ranks, key=lambda each: whole(each)["loss"])


needs_kernels = pytest.mark.skipif(not kernels_available(), reason="the C++ extension was not built")


def zeroed(name: str) -> PreTrainedModel:
    model = tiny_model(name)
    for parameter in model.parameters():
        parameter.data.view(-1)[::3] = 0.0
    return model


def elastic_of(name: str, groups: tuple[str, ...]) -> ElasticAdapter:
    model = zeroed(name)
    space = build_space(model, groups, (4, 2))
    targets = [linear for names in space.modules.values() for linear in names]
    lora = LoraConfig(r=4, target_modules=targets, fan_in_fan_out=name == "gpt2")
    return make_elastic(get_peft_model(model, lora), space)


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


@needs_kernels
def test_what_is_timed_computes_what_the_activated_ranks_compute() -> None:
    elastic = make_adapter()
    evaluator = LatencyEvaluator(elastic, "fp32")
    tokens = [3, 1, 4, 1, 5, 9]
    for ranks in (elastic.space.minimal(), elastic.space.heuristic(), elastic.space.maximal()):
        found = evaluator.adapted(ranks).logits(tokens)
        elastic.activate(ranks)
        with torch.no_grad():
            expected = elastic.model(input_ids=torch.tensor([tokens])).logits[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert evaluator(ranks)["latency"] > 0


@needs_kernels
def test_a_search_for_loss_and_latency_has_both_figures(super_adapter: Path, validation: str, tmp_path: Path) -> None:
    folder = search(super_adapter, tmp_path / "out", data=validation, objective="loss,latency",
                    constraint="latency<=10000", **{**SEARCH, "strategy": "nsga2"})  # fmt: skip
    result = read_json(folder / "result.json")
    assert all(each["metrics"]["latency"] > 0 for each in result["evaluations"])
    assert set(result["hypervolume"]["reference"]) == {"loss", "latency"}


@needs_kernels
def test_where_it_cannot_be_measured_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="latency must be left out with a sparse adapter"):
        LatencyEvaluator(make_super_adapter(sparse=True).elastic)
    with pytest.raises(InputError, match="the native decoder covers"):
        LatencyEvaluator(make_adapter("gemma2"))
    monkeypatch.setattr(evaluators, "kernels_available", lambda: False)
    with pytest.raises(InputError, match=r"latency needs the C\+\+ extension.*take macs"):
        LatencyEvaluator(make_adapter())

"""Does the training log predict which ranks are good? Held-out configurations, measured on validation examples.

    python -m benchmarks.nls_surrogate --adapter SUPER --data VALIDATION [--configs 30] [--limit 100]

SUPER was trained with sampling per-example or sandwich. Random configurations that training has not seen are measured,
and their losses are compared, by rank, with what the surrogate predicts and with what the mere number of parameters
predicts. Then the surrogate's best configurations, the published alternative (the configurations of the lowest training
losses) and the heuristic are measured too.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.nls import mean_loss
from benchmarks.report import environment, log_to_stderr
from shears.adapt.load import SuperAdapter, load_super_adapter
from shears.adapt.space import RankConfig
from shears.data.batches import padding
from shears.data.examples import load_examples, tokenize_all
from shears.searching.seeds import parameters_per_rank
from shears.searching.surrogate import fit, lowest_losses, rank_correlation
from shears.searching.training_log import read_pairs

Measure = Callable[[RankConfig], float]


def main() -> None:
    """Print the correlations and the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--configs", type=int, default=30)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5, help="configurations of the surrogate and of the alternative")
    arguments = parser.parse_args()
    log_to_stderr()
    print(environment(), flush=True)
    adapter = load_super_adapter(arguments.adapter)
    space = adapter.elastic.space
    pairs = read_pairs(arguments.adapter, space)
    surrogate = fit(pairs, space, parameters_per_rank(adapter.elastic))
    measure = _measure(adapter, arguments.data, arguments.limit)
    configs = [space.random(random.Random(f"held out {number}")) for number in range(arguments.configs)]
    losses = [measure(config) for config in configs]
    sizes = [-adapter.elastic.num_parameters(config) for config in configs]
    predicted = [surrogate.predict(config) for config in configs]
    print(f"{len(pairs.losses)} pairs, explained {surrogate.explained:.4f}, strength {surrogate.strength:.3g}")
    print(f"losses of {len(losses)} random configurations: {min(losses):.4f} to {max(losses):.4f}")
    print(f"rank correlation with the surrogate's prediction: {rank_correlation(predicted, losses):+.3f}")
    print(f"rank correlation with fewer parameters: {rank_correlation(sizes, losses):+.3f}")
    print("\n| configuration | adapter parameters | validation loss |\n| --- | --- | --- |")
    _print(adapter, measure, "maximal", [space.maximal()])
    _print(adapter, measure, "heuristic", [space.heuristic()])
    _print(adapter, measure, "minimal", [space.minimal()])
    _print(adapter, measure, "surrogate, best", surrogate.best(arguments.seeds))
    _print(adapter, measure, "lowest training loss", lowest_losses(pairs, space, arguments.seeds))


def _measure(adapter: SuperAdapter, data: str, limit: int) -> Measure:
    examples = load_examples(data, adapter.record["template"], adapter.tokenizer, limit)
    rows = tokenize_all(examples, adapter.tokenizer, 4096)

    def measure(config: RankConfig) -> float:
        adapter.elastic.activate(config)
        return mean_loss(adapter.model, rows, padding(adapter.tokenizer))

    return measure


def _print(adapter: SuperAdapter, measure: Measure, name: str, configs: Sequence[RankConfig]) -> None:
    for config in configs:
        size = adapter.elastic.num_parameters(config)
        print(f"| {name} | {size / 1e6:.2f} M | {measure(config):.4f} |", flush=True)


if __name__ == "__main__":
    main()

"""The ways in which the kernels can walk over a weight, timed side by side: which one is fastest on this processor?

    taskset -c 1 python -m benchmarks.kernel_walks --values bf16 --tokens 1 2

One thread multiplies by a random weight, half of it zeros where it is sparse. It is larger than the caches unless
--bytes is small: then the time is that of arithmetic, without memory. A table for each kind of values: nanoseconds per
1,000 weights (pruned ones count), the median of the turns that fit into --seconds. The first line is the default;
products take the one marked `chosen` (shears.runtime.native.tuning).
"""

import argparse

from benchmarks.report import environment, parser_of
from shears.runtime.native import _native
from shears.runtime.native.tuning import CODES, best_names, weight_bytes


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    print(environment())
    for values in arguments.values:
        for sparse in (True, False):
            timed = _native.time_candidates(CODES[values], sparse, arguments.bytes, arguments.seconds)
            for number, (candidates, chosen) in enumerate(zip(timed, best_names(timed, values), strict=True)):
                tokens = _native.tokens_of(number)
                if tokens in arguments.tokens:
                    print(f"\n{values} {'sparse' if sparse else 'dense'}, {tokens} tokens\n")
                    print("| walk | ns per 1,000 weights | |\n| --- | --- | --- |")
                    for name, seconds in candidates:
                        print(f"| {name} | {seconds * 1e12:.1f} | {'chosen' if name == chosen else ''} |")


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--values", nargs="+", default=list(CODES), choices=list(CODES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each kind of values")
    parser.add_argument("--bytes", type=int, default=weight_bytes(), help="of the weight; 300000 fits a cache")
    return parser.parse_args()


if __name__ == "__main__":
    main()

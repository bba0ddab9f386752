"""RIA ("Plug-and-Play", ICLR 2024), restated literally with loops over plain numbers; knows nothing of shears."""


def scores(weight: list[list[float]], input_norm: list[float], alpha: float) -> list[list[float]]:
    """Return (|W_ij| / sum_k |W_ik| + |W_ij| / sum_k |W_kj|) * norm_j ** alpha."""
    found = []
    for row in weight:
        row_sum = sum(abs(value) for value in row)
        scored = []
        for column, value in enumerate(row):
            column_sum = sum(abs(other[column]) for other in weight)
            scored.append((abs(value) / row_sum + abs(value) / column_sum) * input_norm[column] ** alpha)
        found.append(scored)
    return found

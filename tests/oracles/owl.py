"""OWL (arXiv 2310.05175), restated literally: blocks of one size, no clamping; knows nothing of shears."""


def sparsities(outlier_shares: list[float], sparsity: float, spread: float) -> list[float]:
    """Return 1 - density; densities are the shares scaled to a range of 2 * spread, moved to a mean of 1 - sparsity."""
    least, most = min(outlier_shares), max(outlier_shares)
    scaled = [(share - least) / (most - least) * spread * 2 for share in outlier_shares]
    mean = sum(scaled) / len(scaled)
    densities = [value - mean + (1 - sparsity) for value in scaled]
    return [1 - density for density in densities]


def outlier_share(scores: list[list[float]], multiple: float) -> float:
    """Return the share of scores that are more than `multiple` times the mean of all."""
    values = [value for row in scores for value in row]
    mean = sum(values) / len(values)
    return sum(value > multiple * mean for value in values) / len(values)

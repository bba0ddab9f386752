"""`shears compress`: the shortest road to a bound on size or speed, chosen and checked by measuring."""

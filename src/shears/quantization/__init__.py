"""Weights as whole numbers: grids, rounding to nearest or with known inputs, training on a grid."""

"""Weights as whole numbers: grids, rounding to nearest and with known inputs, training on a grid."""

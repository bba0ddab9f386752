"""Sparse weights as a bit mask and the kept values, and the package file that holds them."""

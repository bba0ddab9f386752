"""Sparse weights as a bit mask and the kept values, and the one file that a package keeps them in."""

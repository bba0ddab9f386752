"""Packed linears inside a model of transformers."""

"""Torch modules, the embedding table, kernels and the MODELS table."""

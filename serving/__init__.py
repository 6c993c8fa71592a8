"""Scoring over HTTP, with per-task adaptation and atomic swaps."""

"""Comparison of two models' results: whether a difference is more than noise."""

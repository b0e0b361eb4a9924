"""Measurements of models under policies, by every method."""

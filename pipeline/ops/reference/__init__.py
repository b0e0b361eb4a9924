"""Operators written plainly: the truth that compiled forms are tested against."""

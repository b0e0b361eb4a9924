"""Decoding loops over bounded and full caches, and what they hold."""

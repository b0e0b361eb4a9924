"""Files between steps: whole or absent, sealed, described."""

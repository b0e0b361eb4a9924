"""An experiment: its configuration, its grid, its files and commands."""

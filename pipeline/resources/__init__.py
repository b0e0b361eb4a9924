"""Data files of the package itself: tables that code reads, so that facts stay out of code."""

"""What people look at: the tidy table, tables, figures, comparison, provenance."""

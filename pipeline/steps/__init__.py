"""One module per command; each reads files, writes files, and knows nothing of Snakemake."""

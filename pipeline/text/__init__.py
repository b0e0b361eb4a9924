"""Text that experiments read: documents, windows, prompts, and how summaries are scored."""

"""What is known of `transformers` models: shapes, weights, attention; never the method."""

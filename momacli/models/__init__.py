"""Encoders and heads; the only place that knows transformers and open_clip."""

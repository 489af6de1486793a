"""whet: a fine-tuning experiment harness for language models."""

__version__ = "0.1.0"

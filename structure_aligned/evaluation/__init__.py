"""Evaluation of protein language models: contacts, mutation effects, probes, perplexity, and what is a difference."""

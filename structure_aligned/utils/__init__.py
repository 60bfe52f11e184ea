"""Helpers that know nothing of proteins or models."""

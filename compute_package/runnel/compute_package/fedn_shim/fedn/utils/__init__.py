"""Helpers that read and write models."""

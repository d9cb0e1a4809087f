"""Talking to FEDn's controller."""

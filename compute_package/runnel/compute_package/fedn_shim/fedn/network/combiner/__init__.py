"""FEDn's combiner."""

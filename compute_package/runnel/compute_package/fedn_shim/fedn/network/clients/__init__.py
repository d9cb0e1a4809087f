"""FEDn's own client."""

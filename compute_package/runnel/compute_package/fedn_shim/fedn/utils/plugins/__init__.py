"""Where FEDn 0.5 to 0.7 had its helpers."""

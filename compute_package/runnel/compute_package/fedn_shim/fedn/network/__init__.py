"""FEDn's servers and clients, of which this stand-in has what runs inside a package."""

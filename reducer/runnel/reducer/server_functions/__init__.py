"""A package's ``ServerFunctions``: run in a process of their own, asked by the reducer, and believed nothing."""

"""The ``runnel`` command. Nothing is imported here: its help has to answer at once."""

__all__: list[str] = []

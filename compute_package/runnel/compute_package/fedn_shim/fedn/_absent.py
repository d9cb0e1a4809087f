"""Names of FEDn that this stand-in does not have, and what to do for those who need them."""


def absent_names(module, *names):
    """Return a ``__getattr__`` for ``module`` that says of ``names`` why they are missing."""

    def __getattr__(name):  # noqa: N807 (it becomes the module's)
        if name in names:
            raise ImportError(
                f"{module}.{name} talks to FEDn's servers and is not in the light stand-in for fedn that Runnel "
                "installs. A client that is started with --fedn real installs FEDn itself."
            )
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__

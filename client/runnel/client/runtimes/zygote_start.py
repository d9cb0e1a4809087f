"""What the interpreter of a zygote is started with; all that it does is in ``zygote_process.py``, beside it.

It is this short because each child of the zygote takes apart, in copies of its own, what the interpreter has read of
the file it was started with.
"""

if __name__ == "__main__":
    import zygote_process  # type: ignore[import-not-found]

    zygote_process.main(__file__)

"""One module for each kind of model file, with a class ``Helper``."""

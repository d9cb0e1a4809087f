"""The demonstration: a whole network of real processes on this machine, and what came of its training."""

from runnel.demo.demonstration import run_demo
from runnel.demo.example import locate_example
from runnel.demo.options import DemoOptions
from runnel.demo.outcome import Outcome
from runnel.demo.processes import DemoFailed
from runnel.demo.screens import Screen, make_screen

__all__ = ["DemoFailed", "DemoOptions", "Outcome", "Screen", "locate_example", "make_screen", "run_demo"]

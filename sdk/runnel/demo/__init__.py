"""The demonstration: a whole network of real processes on this machine that trains on real data, and what came of it."""

from runnel.demo.demonstration import run_demo
from runnel.demo.example import locate_example
from runnel.demo.options import DemoOptions
from runnel.demo.outcome import Outcome
from runnel.demo.processes import ProcessEnded
from runnel.demo.screens import Screen, make_screen

__all__ = ["DemoOptions", "Outcome", "ProcessEnded", "Screen", "locate_example", "make_screen", "run_demo"]

"""Policies measured at equal bytes (runner.py), and a stream that goes on until something breaks (stress)."""

"""The parts of `evaluate.py`: streams recorded once, cells, rows, the report and its plots."""

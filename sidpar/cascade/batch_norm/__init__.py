"""Batch norm whose statistics are those of all rows that several ranks have together; free of ranks.

May import: nothing.
Start reading: module.py, then statistics.py.
"""

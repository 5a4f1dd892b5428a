"""This process among others: environment, device, process groups, signals.

May import: config.
Start reading: runtime.py, the context that is passed to whatever needs it.
"""

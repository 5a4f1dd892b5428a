"""This process as one of several ranks: environment, device, process groups, signals.

May import: config.
Start reading: runtime.py, the context that is passed to whatever needs it.
"""

"""Every message of a step, one function each.

May import: schedules, cascade, distributed, profiler.
Start reading: transport.py.
"""

"""Engines execute training steps: they compute gradients, and say when these are complete.

May import: config, schedules, cascade, rules, distributed, profiler, messages, stages.
Start reading: base.py, the interface; local.py, the reference in one process; parallel.py, the same on ranks.
"""

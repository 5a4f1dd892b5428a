"""Engines execute steps: they fill gradients, and say when these are complete.

May import: config, schedules, cascade, rules, data, distributed, profiler, messages, stages.
Start reading: base.py, the interface; local.py, the oracle; parallel.py, the same on ranks.
"""

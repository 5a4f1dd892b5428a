"""Finds the fastest way to train a cascade that fits in memory.

Pure: no torch. May import: config, schedules, simulation.
Start reading: search.py; candidates.py has the ways among which it chooses.
"""

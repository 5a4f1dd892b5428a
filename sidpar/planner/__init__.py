"""Which way to train a cascade is the fastest that fits.

Pure: no torch. May import: config, schedules, simulation.
Start reading: search.py; candidates.py has the ways among which it chooses.
"""

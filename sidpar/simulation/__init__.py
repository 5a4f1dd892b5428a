"""Simulates lists of actions: deadlocks, times and memory.

Pure: no torch. May import: config, schedules.
Start reading: simulator.py, which runs the lists; cost_model.py, which asks it how long a step takes.
"""

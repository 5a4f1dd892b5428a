"""Placements, and the list of actions of each rank in a step, as plain data.

Pure: no torch. May import: config.
Start reading: synchronous.py, the two schedules of one step, with their drawings.
"""

"""Pictures of runs, beliefs and plans, as PNGs.

May import: config, schedules, planner, runs.
Start reading: pictures.py, what all pictures share.
"""

"""Pictures of runs, beliefs and plans, as PNGs.

May import: config, schedules, planner, runs.
Start reading: files.py, what all pictures share.
"""

"""Pictures of runs, beliefs and plans.

May import: config, schedules, planner, runs.
Start reading: style.py, how all pictures look.
"""

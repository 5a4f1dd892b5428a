"""Who does what and when: placements, and each rank's list of actions, as plain data.

Pure: no torch. May import: config.
Start reading: synchronous.py, the two schedules of one step, with their drawings.
"""

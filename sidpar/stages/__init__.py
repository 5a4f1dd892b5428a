"""One rank's share of a cascade, and how its modules are executed.

May import: config, schedules, cascade, rules, distributed, messages.
Start reading: stage.py.
"""

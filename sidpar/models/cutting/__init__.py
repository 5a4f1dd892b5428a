"""A network cut into an extractor and refiners.

May import: config.groups, schedules, cascade.
Start reading: cut.py, all of it in order; tracing.py, how it is known what a network calls when.
"""

"""The settings of a run, their checks, and the command line that fills them in.

Pure: no torch. May import: config.groups.
Start reading: schema.py, all settings together.
"""

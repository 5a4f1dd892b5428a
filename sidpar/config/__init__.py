"""The settings of a run, their checks, and the command line that fills them in.

Pure: no torch. May import: nothing.
Start reading: schema.py, all settings together.
"""

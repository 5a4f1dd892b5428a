"""The settings by group, each checked on its own, and the choices that they offer.

Pure: no torch. May import: nothing.
Start reading: parallel.py, the largest group.
"""

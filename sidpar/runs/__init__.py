"""The files that a run writes, and how they are read back.

May import: config, cascade, models, data, distributed, messages, stages.
Start reading: run_folder.py.
"""

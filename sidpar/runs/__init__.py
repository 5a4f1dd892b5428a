"""What a run leaves on disk, and how it is read back.

May import: config, cascade, models, data, distributed, messages, stages.
Start reading: run_folder.py.
"""

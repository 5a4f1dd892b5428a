"""What a dataset is, in memory or in files, augmentation, batches.

May import: nothing.
Start reading: loader.py.
"""

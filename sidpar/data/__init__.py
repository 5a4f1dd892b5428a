"""Datasets in memory or in files, augmentation, batches.

May import: config.
Start reading: loader.py.
"""

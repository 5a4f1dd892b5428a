"""Epochs and steps: from a configuration to a trained cascade.

May import: config, cascade, models, data, distributed, stages, engines, methods, runs.
Start reading: trainer.py.
"""

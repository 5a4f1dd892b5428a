"""Epochs and steps: from a configuration to a trained cascade.

May import: config, schedules, simulation, planner, cascade, rules, models, data, distributed, stages, engines,
engines.backpropagation, calibration, runs.
Start reading: trainer.py.
"""

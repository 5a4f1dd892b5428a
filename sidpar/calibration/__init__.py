"""Measures the costs of the pieces of a network, of messages and of the engine.

May import: config, simulation, cascade, distributed, profiler, stages, engines.
Start reading: pieces.py.
"""

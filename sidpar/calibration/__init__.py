"""What pieces of a network, messages and the engine itself cost, measured here.

May import: config, simulation, cascade, distributed, profiler, stages, engines.
Start reading: pieces.py.
"""

"""The baselines: backpropagation in one process, by DDP, by torch's pipelines.

May import: config, schedules, cascade, rules, data, distributed, profiler, messages, stages, engines.
Start reading: whole.py; pipeline.py.
"""

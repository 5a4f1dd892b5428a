"""Records time, memory and traffic during training.

May import: schedules, distributed.
Start reading: clock.py.
"""

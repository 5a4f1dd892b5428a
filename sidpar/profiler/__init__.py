"""What is recorded while work goes on: time, memory, traffic.

May import: schedules, distributed.
Start reading: clock.py.
"""

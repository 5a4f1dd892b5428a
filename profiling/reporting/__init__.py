"""From a report to tables and pictures."""

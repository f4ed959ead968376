"""What would fail, and what others can read or reach, before a run begins."""

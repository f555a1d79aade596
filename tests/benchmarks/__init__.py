"""What a job costs: `python -m tests.benchmarks.overhead`."""

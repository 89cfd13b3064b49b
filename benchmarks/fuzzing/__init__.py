"""What ``benchmarks.fuzz`` is made of: files to begin with, mutations of them, and processes that read the results."""

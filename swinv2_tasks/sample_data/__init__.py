"""Made-up datasets in the real ones' formats."""

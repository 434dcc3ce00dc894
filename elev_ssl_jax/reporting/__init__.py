"""What many runs say together: intervals, p-values, verdicts in words, pages."""

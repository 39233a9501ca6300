"""What stands between a question and its answer, looked at one after the other."""

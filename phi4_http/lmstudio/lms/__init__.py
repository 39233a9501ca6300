"""LM Studio's command `lms`: how it is run, and what it prints."""

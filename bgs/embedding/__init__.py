"""Embedding many video files into one table: finding them, going through them, and what is written."""

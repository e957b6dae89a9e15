"""What a run writes down as it goes, and what it prints."""

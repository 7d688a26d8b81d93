"""The plan, and the trials that carry it out."""

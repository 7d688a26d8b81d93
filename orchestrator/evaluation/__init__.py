"""Selection on dev, figures on test, and the report's data."""

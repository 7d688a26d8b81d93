"""Router and models together: predictions, and the bundle on disk."""

"""Files to decoded images, embeddings and the manifest."""

"""Starting, joining and sharing Ray."""

"""Radiographs and networks: everything that needs no Ray, usable from a notebook."""

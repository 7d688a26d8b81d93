"""Backbones, heads, and what runs them."""

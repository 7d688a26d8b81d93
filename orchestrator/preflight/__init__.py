"""Checks of machine, cluster and disk before a run."""

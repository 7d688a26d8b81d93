"""Everything that knows Ray: the run, its steps, its searches and its report."""

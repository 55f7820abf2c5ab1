"""Jobs: what a request means, the plan, the run and its report."""

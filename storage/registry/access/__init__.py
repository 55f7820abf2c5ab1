"""Who may decide about a registry, and the chained record of every decision."""

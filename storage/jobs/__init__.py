"""Records of jobs: lease, members, claims, control, journal."""

"""What a job did, for people and for machines."""

"""What a model is asked to do: its module with a head, the columns it writes, and how rows become its inputs."""

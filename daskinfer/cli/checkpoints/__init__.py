"""`daskinfer checkpoint`: the commands about registries."""

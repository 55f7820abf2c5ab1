"""The running job: cluster, driver, faults. The only floor that imports distributed."""

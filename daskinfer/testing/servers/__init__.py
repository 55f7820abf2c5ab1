"""Store servers on this machine."""

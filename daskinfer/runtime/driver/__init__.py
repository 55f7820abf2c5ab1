"""The driver's loop: takes events, asks the state machine, and performs its actions."""

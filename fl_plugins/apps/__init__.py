"""The ready-made Flower App: everything it runs is chosen by name in the run config."""

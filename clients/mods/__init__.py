"""Flower mods: the clients' parts of layers around a round."""

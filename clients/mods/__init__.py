"""Flower mods: the clients' part of layers that the server announces."""

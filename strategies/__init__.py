"""The server's wing: strategies for a Flower ServerApp."""

"""The clients' wing: JAX trainers, tasks and attacks for a Flower ClientApp."""

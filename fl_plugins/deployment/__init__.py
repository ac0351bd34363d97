"""A deployment on real processes and machines: certificates, keys, start files, and driving it for trials."""

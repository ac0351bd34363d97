"""Ready-made tasks; each module is one and is imported only when it is asked for."""

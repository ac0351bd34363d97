"""Flower Apps in a private local SuperLink: started, followed, judged and ended from here."""

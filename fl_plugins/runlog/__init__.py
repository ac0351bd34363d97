"""One event stream per run, and what is drawn from it: progress lines and the comparison table."""

"""What a run looks like: tables for the terminal, curves, galleries and a self-contained HTML report."""

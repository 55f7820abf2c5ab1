"""What commands print: results as text, progress, and consoles of every kind."""

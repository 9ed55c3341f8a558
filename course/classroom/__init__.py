"""What the reader touches: the notebook helpers, the figure style, and one folder for each chapter."""

"""Chapter 04: float formats."""

CHAPTER = "04"

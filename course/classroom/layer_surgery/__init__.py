"""Chapter 12: layer surgery."""

CHAPTER = "12"

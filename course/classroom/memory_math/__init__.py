"""Chapter 03: memory math."""

CHAPTER = "03"

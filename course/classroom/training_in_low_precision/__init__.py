"""Chapter 06: training in low precision."""

CHAPTER = "06"

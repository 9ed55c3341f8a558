"""Chapter 00: start here."""

CHAPTER = "00"

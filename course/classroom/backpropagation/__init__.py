"""Chapter 02: backpropagation."""

CHAPTER = "02"

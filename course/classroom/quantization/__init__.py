"""Chapter 05: quantization."""

CHAPTER = "05"

"""Chapter 11: model merging."""

CHAPTER = "11"

"""The world of the course: a small shop, its customers' messages and its texts, made from a seed."""

from course.lab.shop.dice import Dice
from course.lab.shop.messages import MESSAGES, example
from course.lab.shop.texts import KINDS, close_reading, copies, copying, document, older_letters, oldest_letters

__all__ = [
    "KINDS",
    "MESSAGES",
    "Dice",
    "close_reading",
    "copies",
    "copying",
    "document",
    "example",
    "older_letters",
    "oldest_letters",
]

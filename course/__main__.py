"""The course's commands: python -m course doctor | plan | merge | progress."""

import argparse
import sys
from pathlib import Path

from course.lab import plan


def doctor(arguments):
    from course.lab import doctor

    return doctor.main()


def merge(arguments):
    from course.lab import merge

    return merge.main(arguments)


def progress(arguments):
    from course.classroom.notebook import progress

    progress()
    return 0


def merge_settings(parser):
    parser.add_argument("recipe", type=Path, help="a YAML file, as mergekit takes it")
    parser.add_argument("--out", type=Path, help="the folder to write; without it, the recipe's name without .yaml")


def no_settings(parser):
    pass


COMMANDS = {  # name -> what it runs, what adds its settings, what it is for
    "plan": (
        plan.main,
        plan.add_settings,
        "how many bytes will it take, and does it fit? `python -m course plan --help` lists the settings",
    ),
    "merge": (merge, merge_settings, "merge models as a recipe says, tensor by tensor, and write a folder"),
    "doctor": (
        doctor,
        no_settings,
        "will the course run on this machine? One line for each thing that matters, and what to do",
    ),
    "progress": (progress, no_settings, "which exercises you have solved"),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m course", description="Finetuning, measured.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (run, add_settings, help_line) in COMMANDS.items():
        added = commands.add_parser(name, help=help_line, description=help_line)
        added.set_defaults(run=run)
        add_settings(added)
    given = parser.parse_args(arguments)
    return given.run(given)


if __name__ == "__main__":
    sys.exit(main())

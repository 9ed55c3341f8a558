"""The course's commands: python -m course doctor | plan | progress."""

import argparse
import sys


def doctor(arguments):
    from course.lab import doctor

    return doctor.main()


def progress(arguments):
    from course.classroom.notebook import progress

    progress()
    return 0


def plan(arguments):
    from course import planner

    return planner.main(arguments)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m course", description="Finetuning, measured.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command, help_line in [
        (plan, "how many bytes will it take, and does it fit? `python -m course plan --help` lists the settings"),
        (doctor, "will the course run on this machine? One line for each thing that matters, and what to do"),
        (progress, "which exercises you have solved"),
    ]:
        added = commands.add_parser(command.__name__, help=help_line, description=help_line)
        added.set_defaults(run=command)
        if command is plan:
            from course import planner

            planner.add_settings(added)
    given = parser.parse_args(arguments)
    return given.run(given)


if __name__ == "__main__":
    sys.exit(main())

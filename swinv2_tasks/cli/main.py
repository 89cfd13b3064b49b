"""Entry point: ``swinv2-tasks`` and ``python -m swinv2_tasks``.

Heavy libraries are imported only by the command that needs them, so that help and errors appear at once.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from swinv2_tasks.child_processes import allow_many_files
from swinv2_tasks.cli.arguments import (
    Option,
    expand_home,
    gather_data_settings,
    gather_values,
    is_list,
    join_options,
    merge_values,
    select_own,
    split_options,
    write_out,
)
from swinv2_tasks.errors import (
    ArgumentsError,
    CollectiveError,
    Interrupted,
    NothingToDo,
    Refused,
    UserError,
    find_user_error,
    strip_traceback,
)
from swinv2_tasks.failures import explain_failure
from swinv2_tasks.stopping import exit_status, handled_stops, stops
from swinv2_tasks.text import say, show_warnings

USAGE = """\
swinv2-tasks: Swin Transformer V2, every downstream task of the paper

Train and use a model
  fit        --config imagenet.yaml [--any.key value]
                                    train, and evaluate after each epoch
  fit        --resume runs/imagenet/3
                                    resume a run, exactly where it was
  validate   --ckpt_path CKPT       evaluate on the validation data
  test       --ckpt_path CKPT       evaluate on the test data
  predict    --ckpt_path CKPT --data.source FILE|FOLDER|GLOB
  sweep      --ckpt_path CKPT --windows 8 16 --sizes 256 512
                                    metric, speed and memory at each

  report     RUN                    one page of what a run has learned
  compare    RUN RUN …              one page of how runs differ

Other commands
  memory     --config CONFIG [--any.key value] [--gpu 24GiB]
                                    what training takes, without doing it, and
                                    what would make it fit
  score ade20k --annotations DIR --predictions DIR
                                    score label maps that lie on disk
  score coco --annotations FILE --predictions FILE
                                    score detections that lie on disk
  weights inspect FILE              what a checkpoint is: format, windows, head
  weights convert IN OUT --format timm
                                    write a checkpoint in another format
  data check TASK FOLDER            look for what is wrong in a dataset, and
                                    write a page of it
  data browse TASK FOLDER           write a page of samples with their labels,
                                    --augmented: as the model gets them
  data convert FOLDER OUT --to coco write a dataset in another layout
  data optimize imagenet FOLDER OUT write its images into shards, to be streamed
  sample-data FOLDER                write small datasets for all tasks
  configs                           list the configs that --config can name
  demo                              train, evaluate, predict on small datasets,
                                    in minutes on a CPU; --short true: six steps

swinv2-tasks COMMAND --help says what a command takes,
swinv2-tasks fit --config CONFIG --print_config prints all values."""

COMMANDS: dict[str, tuple[str, str | tuple[str, ...], bool]] = {
    "score": ("commands.score", ("ade20k", "coco"), False),
    "weights": ("commands.weights", ("inspect", "convert"), True),
    "data": ("commands.data", ("check", "browse", "convert", "optimize"), True),
    "sample-data": ("commands.sample_data", "sample_data", True),
    "demo": ("commands.demo", "demo", True),
    "configs": ("commands.configs", "configs", True),
    "report": ("commands.report.command", "report", True),
    "compare": ("commands.compare.command", "compare", False),
}
"""Commands that do not train: module of this package, its function or several as subcommands, and whether what they
need is given by position."""

CONFIG_COMMANDS = {
    "memory": ("commands.memory.command", "memory"),
    "sweep": ("commands.sweep.sweep", "sweep_grid"),
}
"""Commands that take the arguments of another beside their own: module of this package, and its function, whose
first parameter takes those."""

DATA_COMMANDS = {"data check", "data browse", "data convert"}
"""Commands whose parameter ``settings`` takes the arguments of fit that describe the data: --config and --data.…"""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")

OTHER_NAMES = {
    "train": "fit",
    "finetune": "fit",
    "resume": "fit",
    "eval": "validate",
    "evaluate": "validate",
    "val": "validate",
    "infer": "predict",
    "inference": "predict",
    "convert": "weights",
    "inspect": "weights",
}
"""What other programs call the commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: what follows the program's name; None: those of the process.

    Returns:
        The exit status: 0 done; 1 an error of the user, or files that could not be predicted, reported on standard
        error; 128 + its number after a signal that asks to stop: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1,
        131 SIGQUIT; 141 the reader of the output is gone.
        2 arguments that are refused. The parser's own lists, such as that of ``--help-all``, end in ``SystemExit(0)``.
    """
    with handled_stops():  # before anything takes long, such as an import
        return _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: Sequence[str]) -> int:
    command, *rest = expand_home(arguments) or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    show_warnings()
    allow_many_files()
    try:
        if command == "help":
            command, *rest = [*rest, "--help"]
        if command in ("-h", "--help"):
            say(USAGE)
        elif command == "--version":
            from swinv2_tasks import __version__

            say(__version__)
        elif (screen := _help_screen(command, rest)) is not None:
            say(screen)
        elif command in TRAINER_COMMANDS:
            rest = ["--help" if argument == "--help-all" else argument for argument in rest]
            _announce(command, rest)
            run = importlib.import_module("swinv2_tasks.cli.tasks_cli").run
            status = run(command, rest, _write_report).status
            _flush()
            return status
        elif command in CONFIG_COMMANDS:
            _run_with_config(command, rest)
        elif command in COMMANDS:
            _run_function(command, rest)
        else:
            raise UserError(_describe_unknown_command(command))
        _flush()
    except Refused as refusal:
        from swinv2_tasks.cli.refusals import condense

        _report(condense(str(refusal), command))
        return 2
    except NothingToDo as note:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            say(note)
    except Interrupted as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # which reports for the others
            _report(str(error))
        return exit_status(error.signal)
    except BrokenPipeError:  # whoever read the output has seen enough
        _silence()
        return 141
    except Exception as error:
        return _report_error(error)
    except KeyboardInterrupt:
        say("swinv2-tasks: interrupted", file=sys.stderr)
        return 130
    return 0


def _write_report(folder: Path) -> None:
    """Writes the report of a run."""
    from swinv2_tasks.commands.report.command import write_run_report

    write_run_report(folder)


def _report_error(error: Exception) -> int:
    """Prints what ended a command and can be mended by its user, and gives the exit status; raises anything else."""
    user_error = find_user_error(error)
    if isinstance(user_error, CollectiveError) and os.environ.get("LOCAL_RANK", "0") != "0":
        return 0  # the first process reports; Lightning kills it when one that it started seems to fail
    if user_error is not None:
        _report(strip_traceback(str(user_error)))
        return 2 if isinstance(user_error, ArgumentsError) else 1

    message = explain_failure(error)
    if message is None and stops.number is not None:  # C code has dropped the interruption, and failed of it
        interruption = stops.interruption()
        _report(str(interruption))
        return exit_status(interruption.signal)
    if message is None:
        raise error
    _report(message)
    return 1


def _flush() -> None:
    """Writes out what was printed, so that a failure of that is met here, and not as Python ends."""
    if sys.stdout is None:  # closed from the beginning
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence()
        raise UserError(
            f"standard output cannot be written: {error.strerror}; make room, or send it elsewhere"
        ) from error


def _silence() -> None:
    """Lets what is still to be printed lead nowhere, as Python would try to print it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help_screen(command: str, arguments: Sequence[str]) -> str | None:
    """The screen of help that arguments ask for; None where they ask for none, or for what the parser prints."""
    from swinv2_tasks.cli.help import USAGES, asks_for_screen, command_screen, trainer_screen

    if command in TRAINER_COMMANDS:
        return trainer_screen(command, arguments) if asks_for_screen(arguments) else None
    if command not in [*CONFIG_COMMANDS, *COMMANDS] or not (asks_for_screen(arguments) or "--help-all" in arguments):
        return None

    functions = COMMANDS[command][1] if command in COMMANDS else command
    if isinstance(functions, str):
        return command_screen(command)
    if arguments[0] in functions:
        return command_screen(f"{command} {arguments[0]}")
    usages = "\n       ".join(USAGES[f"{command} {name}"] for name in functions)
    return f"usage: {usages}\n\nOptions: swinv2-tasks {command} {functions[0]} --help"


def _describe_unknown_command(command: str) -> str:
    """What to type instead of a command that there is not."""
    import difflib

    if command.endswith((".yaml", ".yml")):
        return f"{command!r} is no command; did you mean swinv2-tasks fit --config {command}?"

    known = [*TRAINER_COMMANDS, *CONFIG_COMMANDS, *COMMANDS]
    nearest = [OTHER_NAMES[command]] if command in OTHER_NAMES else difflib.get_close_matches(command, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    return f"no command {command!r}{hint} There are {', '.join(known)}; swinv2-tasks --help says what they do."


def _announce(command: str, arguments: Sequence[str]) -> None:
    """Says in a terminal what is waited for: importing torch takes seconds, of which nothing would be seen."""
    is_brief = any(argument in ("-h", "--help") or argument.startswith("--print_config") for argument in arguments)
    is_first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    if sys.stderr.isatty() and "torch" not in sys.modules and is_first and not is_brief:
        say(f"swinv2-tasks {command}: loading PyTorch …", file=sys.stderr, flush=True)


def _report(message: str) -> None:
    """Prints what ended the command."""
    say(f"swinv2-tasks: {message}", file=sys.stderr)


def _run_function(command: str, arguments: list[str]) -> None:
    module_name, functions, by_position = COMMANDS[command]
    if isinstance(functions, str):
        name = functions
    else:
        name, arguments = _name_subcommand(command, functions, arguments), arguments[1:]
        command = f"{command} {name}"
    if command in DATA_COMMANDS:
        arguments = gather_data_settings(arguments)
    elif command == "compare":
        arguments = gather_values(arguments, "runs")
    function = getattr(importlib.import_module(f"swinv2_tasks.{module_name}"), name)
    _call(command, function, arguments, by_position)


def _check_spelling(command: str, options: Sequence[Option], names: Sequence[str]) -> None:
    """Refuses what is almost an option of a command's own, before the other command is asked about it.

    Raises:
        ArgumentsError: there is such an option.
    """
    import difflib

    for option in options:
        nearest = difflib.get_close_matches(option.name, [f"--{name}" for name in names], n=1, cutoff=0.75)
        if nearest and option.name not in ("--name", "--runs", "--output", "--config"):
            raise ArgumentsError(f"{command} has no option {option.name}; did you mean {nearest[0]}?")


def _name_subcommand(command: str, names: Sequence[str], arguments: Sequence[str]) -> str:
    """The subcommand that arguments begin with.

    Raises:
        ArgumentsError: it is none, or missing.
    """
    import difflib

    given = arguments[0] if arguments else ""
    if given in names:
        return given

    nearest = difflib.get_close_matches(given, names, n=1)
    problem = f"{command} has no {given!r}" if given else f"{command} needs one of {' and '.join(names)}"
    hint = f"did you mean swinv2-tasks {command} {nearest[0]}?" if nearest else f"swinv2-tasks {command} --help"
    raise ArgumentsError(
        f"{problem}; {hint}" if nearest or not given else f"{problem}, but {' and '.join(names)}; {hint}"
    )


def _call(command: str, function: Any, arguments: list[str], by_position: bool) -> None:
    """Calls the function of a command with its arguments.

    Raises:
        ArgumentsError: it does not take them.
    """
    import jsonargparse

    from swinv2_tasks.cli.refusals import RefusingParser, explain_function

    if by_position:
        switches = [name for name, hint in get_type_hints(function).items() if hint is bool]
        parameters = inspect.signature(function).parameters.values()
        needed = sum(parameter.default is parameter.empty for parameter in parameters)
        merged = arguments = write_out(arguments, switches, needed)
    else:
        merged = merge_values(split_options(arguments))
    try:
        jsonargparse.auto_cli(
            function,
            args=merged,
            prog=f"swinv2-tasks {command}",
            as_positional=by_position,
            parser_class=RefusingParser,
        )
    except Refused as refusal:
        message = explain_function(command, function, arguments, by_position, str(refusal))
        raise ArgumentsError(message) from refusal


def _run_with_config(command: str, arguments: list[str]) -> None:
    """Runs a command that takes the arguments of another beside its own."""
    if command == "memory":  # before torch is imported, which takes seconds
        say("Estimating the memory of a training step …", file=sys.stderr, flush=True)

    from swinv2_tasks.cli.refusals import RefusingParser, explain_function

    module_name, name = CONFIG_COMMANDS[command]
    function = getattr(importlib.import_module(f"swinv2_tasks.{module_name}"), name)
    parser = RefusingParser(prog=f"swinv2-tasks {command}")
    names = parser.add_function_arguments(function, as_group=False, skip={"arguments"})
    own, others = select_own(split_options(arguments), names)
    _check_spelling(command, others, names)
    lists = [name for name, hint in get_type_hints(function).items() if is_list(hint)]
    try:
        settings = parser.parse_args(merge_values(own, lists))
    except Refused as refusal:
        message = explain_function(command, function, join_options(own), False, str(refusal))
        raise ArgumentsError(message) from refusal
    function(join_options(others), **settings.as_dict())

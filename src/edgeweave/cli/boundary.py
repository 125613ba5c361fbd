"""The edge of the process: every ending of a command as an exit code and a message.

    EdgeweaveError       its exit code       the message, no traceback
    wrong usage          2                   what is wrong, and where help is
    Ctrl-C               130                 nothing
    anything else        1                   a traceback: that is a bug of ours

With ``--json`` stdout gets ``{"error": {...}}`` instead. Knows no command.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from edgeweave.cli.output import encode_document
from edgeweave.core.errors import ConfigError, EdgeweaveError

__all__ = ["guarded"]

_INTERRUPTED = 130
_TRACEBACK_MARK = "\n\n--- traceback on "


def guarded(run: Callable[[], object], arguments: Sequence[str]) -> int:
    """Run a command and return the exit code. ``arguments`` are read for ``--json`` themselves.

    They are not parsed: parsing them may be what failed.
    """
    debug = "--debug" in arguments or bool(os.environ.get("EDGEWEAVE_DEBUG"))
    try:
        code = run()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except EdgeweaveError as error:
        if debug:
            traceback.print_exc()
        return _report(error, arguments, debug=debug)
    except Exception as error:  # noqa: BLE001 - the process boundary: reported with its traceback
        usage = _usage_message(error)
        if usage is not None:
            return _report(ConfigError(usage), arguments, debug=debug)
        traceback.print_exc()
        sys.stderr.write("edgeweave: this is a bug in Edgeweave. Please report the lines above.\n")
        return _tell(_document(error, 1, str(error)), arguments, 1)


def _report(error: EdgeweaveError, arguments: Sequence[str], *, debug: bool) -> int:
    message = _message(error, debug=debug)
    sys.stderr.write(f"edgeweave: {message}\n")
    return _tell(_document(error, error.exit_code, message), arguments, error.exit_code)


def _tell(document: dict[str, object], arguments: Sequence[str], code: int) -> int:
    if "--json" in arguments:
        commands = [each for each in arguments if not each.startswith("-")]
        sys.stdout.write(encode_document(commands[0] if commands else "", document))
        sys.stdout.flush()
    return code


def _document(error: BaseException, code: int, message: str) -> dict[str, object]:
    return {
        "error": {
            "type": type(error).__name__,
            "message": message,
            "exit_code": code,
            "device": getattr(error, "device", None),
            "stage": getattr(error, "stage", None),
        }
    }


def _message(error: EdgeweaveError, *, debug: bool) -> str:
    text = str(error)
    if not debug and _TRACEBACK_MARK in text:
        text = text.split(_TRACEBACK_MARK, 1)[0]
        text += " Its traceback is shown with --debug."
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _usage_message(error: Exception) -> str | None:
    """What typer has to say about wrong usage; its classes moved between its versions."""
    shown = getattr(error, "format_message", None)
    if shown is None:
        return None
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "edgeweave")
    return f"{str(shown()).rstrip('.')}. Try: {command} --help"

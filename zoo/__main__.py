"""The command line: `zoo demo | list | show | fit | predict | compare | diagnose | reproduce`."""

from __future__ import annotations

import sys
import warnings

import typer

from zoo.commands import diagnose, info, reproduce, runs, train
from zoo.commands.options import PASSING, err

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(epilog="Errors are one line; put --debug anywhere for the traceback.")
def cli() -> None:
    """Papers of probabilistic machine learning as Pyro model/guide pairs: swap a guide and compare."""


app.command()(train.demo)
app.command("list")(info.list_)
app.command()(info.show)
app.command(context_settings=PASSING)(train.fit)
app.command()(runs.predict)
app.command(context_settings=PASSING)(train.compare)
app.command(context_settings=PASSING)(diagnose.diagnose)
app.command()(reproduce.reproduce)


def main() -> None:
    """Run the command line: errors are one line on standard error and exit code 2."""
    warnings.filterwarnings("ignore", message="(?s).*ArviZ is undergoing")
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        code = app(arguments or ["--help"], prog_name="zoo", standalone_mode=False)
        if code == 130:  # some versions of typer return this instead of raising
            err.print("zoo: interrupted")
        sys.exit(code if isinstance(code, int) else 0)
    except (typer.Abort, KeyboardInterrupt):
        err.print("zoo: interrupted")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # a wrong option, in every version of typer
            message = error.format_message()
        elif isinstance(error, ValueError | OSError):
            message = str(error)
        else:
            message = f"{type(error).__name__}: {error} (unexpected; --debug shows where)"
        err.print(f"zoo: {' '.join(message.split())}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

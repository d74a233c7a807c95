"""The command `pcdm`: its commands, its exit statuses, its errors.

Exit statuses: 0; 1 where another process of the job or a part of the tables failed, an image of a
file is damaged, or a file that was written does not decode; 2 with one line on stderr for what the
user can mend: bad input, a full disk, too little memory; 130 after an interrupt.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from pcdm_lib import __version__
from pcdm_lib.advice import did_you_mean
from pcdm_lib.commands import files, messages, models, sample, score, tables, train
from pcdm_lib.commands.options import Command, process

# typer.BadParameter's base class but two; Typer exports no name for it
_Usage: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class Shell(typer.core.TyperGroup):
    """The group of commands; every error that a user can mend is one line on stderr."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> int:
        """Run one command; exits with its status, or returns it where not `standalone_mode`."""
        words = list(sys.argv[1:] if args is None else args)
        self._main_shell_completion(extra, prog_name or "pcdm", complete_var)
        status = self._run(words, prog_name or "pcdm", extra)
        if standalone_mode:
            sys.exit(status)
        return status

    def _run(self, words: list[str], name: str, extra: dict[str, Any]) -> int:
        command = next((word for word in words if not word.startswith("-")), "")
        speaker, empty = f"{name} {command}".rstrip(), not words
        messages.speak_plainly()
        try:
            with self.make_context(name, ["--help"] if empty else words, **extra) as context:
                status = self.invoke(context) or 0
            _flush()
            return status
        except typer.Exit as end:
            return 2 if empty else end.exit_code
        except _Usage as error:
            speaker = error.ctx.command_path if getattr(error, "ctx", None) else speaker
            return _fail(speaker, f"{_message(error)} ({speaker} --help explains)", 2)
        except BrokenPipeError:  # `pcdm settings | head`: nobody reads any more
            messages.hush()
            return 1
        except (Exception, KeyboardInterrupt) as error:
            said = messages.said(error, command)
            if said is None:
                raise
            return _fail("" if said.status == 130 else speaker, said.text, said.status)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer, with one way to say what was probably meant."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            near = did_you_mean(args[0], self.commands)
            ctx.fail(f"no command is called {args[0]!r}{near}")
        return super().resolve_command(ctx, args)


def _flush() -> None:
    """Write what print kept back, so that an error of it is seen here and not at the very end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        messages.hush()
        raise


def _fail(speaker: str, message: str, status: int) -> int:
    who = f"{speaker}: " if speaker else ""
    with contextlib.suppress(OSError):  # nobody reads stderr either
        print(f"{who}{process()}{message}", file=sys.stderr, flush=True)
    return status


def _message(error: Any) -> str:
    """A usage error in one line, with the option that was probably meant."""
    near = list(getattr(error, "possibilities", None) or ())
    text = error.message if near else error.format_message()
    text = messages.one_line(" ".join(text.split())).rstrip(".")
    return f"{text}, did you mean {near[0]!r}?" if near else text


app = typer.Typer(
    name="pcdm",
    cls=Shell,
    help="Train, score, sample and compress with cascaded diffusion models (arXiv 2501.06999).",
    epilog="`pcdm COMMAND --help` explains a command and shows examples. "
    "`pcdm --install-completion` sets up completion for your shell.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pcdm-lib {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


for _panel, _functions in (
    ("Models", (train.train, train.settings, sample.sample, models.card, models.ship)),
    ("Likelihoods", (score.evaluate, score.likelihoods)),
    ("Files", (files.compress, files.decompress)),
    ("The paper's tables", (tables.tables,)),
):
    for _function in _functions:
        app.command(cls=Command, rich_help_panel=_panel, epilog=getattr(_function, "epilog", None))(
            _function
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    Args:
        arguments: the words after `pcdm`; those of this process by default.
    """
    return app(
        args=None if arguments is None else [str(word) for word in arguments],
        prog_name="pcdm",
        standalone_mode=False,
    )


def run() -> NoReturn:
    """The console script `pcdm`, and `python -m pcdm_lib`."""
    status = main()
    if "RANK" in os.environ:
        from pcdm_lib.training import distributed

        distributed.end(status)
    sys.exit(status)

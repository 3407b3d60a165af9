"""The command line. Every verb is imported when it is used, and no verb's --help imports torch."""

from __future__ import annotations

import importlib
import itertools
import os
import secrets
import shlex
import sys
import traceback
from collections.abc import Sequence

from splatgen.commands.common.errors import USAGE, describe, one_line
from splatgen.runs.version import __version__

CLOSED = 141  # who reads the output has closed it: what a shell says of one that SIGPIPE ended
VERBS = {  # name: (module, summary)
    "generate": ("splatgen.commands.generate", "make a 3D object out of a prompt"),
    "edit": ("splatgen.commands.edit", "change an object by words: a red cube -> a blue cube"),
    "image": ("splatgen.commands.image", "the same guidance on one image instead of an object"),
    "compare": ("splatgen.commands.compare", "several methods on one prompt, paired"),
    "sweep": ("splatgen.commands.sweep", "many prompts with several methods, here or on a cluster"),
    "eval": ("splatgen.commands.eval", "finished runs measured by the papers' metrics"),
    "report": ("splatgen.commands.report", "a sweep as one page: tables, plots, pictures"),
    "resume": ("splatgen.commands.resume", "continue a run that was stopped"),
    "studio": ("splatgen.commands.studio", "make one object after the other from a page in the browser"),
    "view": ("splatgen.commands.view", "a finished run or a splat file in the browser"),
    "runs": ("splatgen.commands.runs", "the runs in a folder: list, find, delete"),
    "render": ("splatgen.commands.render", "a turntable and a preview of a run or a .ply"),
    "export": ("splatgen.commands.export", "write splats for other programs"),
    "fetch": ("splatgen.commands.fetch", "get the weights of a prior or reward, or list them"),
    "words": ("splatgen.commands.words", "what the embedded prior knows, with pictures"),
    "completion": ("splatgen.commands.completion", "a script that completes words in bash, zsh or tcsh"),
    "doctor": ("splatgen.commands.doctor", "what this machine can run, and the next command"),
}

PLAIN_WORDS = {
    "generate": 1,
    "image": 1,
    "compare": 1,
    "edit": 2,
}  # verbs with a prompt: words before options

HELP = """\
usage: splatgen VERB [OPTIONS]

Text to 3D Gaussian splats.

{verbs}

splatgen VERB --help lists a verb's options, splatgen --version the version.

Progress goes to stderr, result paths to stdout. Exit codes: 0 done; 2 wrong usage, settings or input
file (also one that is missing); 3 a model or dependency is missing; 4 the run diverged; 5 out of memory;
6 disk or other I/O; 130 after Ctrl-C, 143 after TERM, 129 after HUP, with a checkpoint. SPLATGEN_DEBUG=1
shows tracebacks.

    splatgen generate "a red cube on top of a blue sphere"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough, as in `splatgen words | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return CLOSED
    except SystemExit as stop:  # tyro's: 0 after --help, 2 after an error that it has shown
        if stop.code == USAGE and is_loose(words):
            print("splatgen: if those words are the prompt, put it in quotes", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else USAGE
    except (Exception, KeyboardInterrupt) as error:
        expected = describe(error)
        if expected is None:
            raise
        if os.environ.get("SPLATGEN_DEBUG", "0") not in ("", "0"):
            traceback.print_exception(error)
        code, message = expected
        print(f"splatgen: error: {one_line(message)}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):  # a run that failed says where it is
            print(f"splatgen: {one_line(note)}", file=sys.stderr)
        return code


def dispatch(words: Sequence[str]) -> int:
    """Hand the words to the verb they begin with."""
    if not words:
        print(help_text(), file=sys.stderr, end="")
        return USAGE
    verb, rest = words[0], words[1:]
    if verb in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if verb == "--version":
        print(f"splatgen {__version__}")
        return 0
    if verb not in VERBS:
        raise ValueError(unknown_verb(verb))
    code: int = importlib.import_module(VERBS[verb][0]).main(prepared(verb, rest))
    return code


def prepared(verb: str, words: Sequence[str]) -> list[str]:
    """The words of a verb, a number for `--seed random`; ValueError for a prompt without quotes."""
    unquoted = [word for word in _leading(words) if word]
    most = PLAIN_WORDS.get(verb)
    if most is not None and len(unquoted) > most:
        before, prompt = unquoted[: most - 1], " ".join(unquoted[most - 1 :])
        command = " ".join(["splatgen", verb, *map(shlex.quote, before), f'"{prompt[:200]}"'])
        raise ValueError(f"a prompt of several words stands in quotes: {command}")
    return seeded(words)


def is_loose(words: Sequence[str]) -> bool:
    """Whether words stand alone at the end of a line of a verb with a prompt, more than an option's value."""
    last = list(itertools.takewhile(lambda word: not word.startswith("-"), reversed(words)))
    single = [word for word in last if " " not in word]
    return bool(words) and words[0] in PLAIN_WORDS and len(last) < len(words) and len(single) > 2


def _leading(words: Sequence[str]) -> list[str]:
    """The words before the first option."""
    return list(itertools.takewhile(lambda word: not word.startswith("-"), words))


def seeded(words: Sequence[str]) -> list[str]:
    """A number for `--seed random`, the same wherever it is read again."""
    drawn = str(secrets.randbelow(2**31))
    found = [f"--seed={drawn}" if word == "--seed=random" else word for word in words]
    for n, word in enumerate(found[:-1]):
        if word == "--seed" and found[n + 1] == "random":
            found[n + 1] = drawn
    return found


def help_text() -> str:
    return HELP.format(verbs="\n".join(f"    {name:<11}{text}" for name, (_, text) in VERBS.items()))


def unknown_verb(word: str) -> str:
    from splatgen.config.hints import did_you_mean

    if word.startswith("-"):
        return f"no option {word[:60]!r} here: a verb comes first, one of {', '.join(VERBS)}"
    hint = f'to make it: splatgen generate "{word[:60]}"' if " " in word else did_you_mean(word, VERBS)
    return f"no verb {word[:60]!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())

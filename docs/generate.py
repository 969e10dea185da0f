"""Writes every page of `pages()`, after a command, setting, base, table or figure changed.

`pages()` gives the texts without writing them, for the test that they are up to date. Knows no job.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from mta_cli.configuration.settings import OPTION_CLASSES, SETTINGS_FILE_NAME, Setting, all_settings
from mta_cli.options import PRESETS

FOLDER = Path(__file__).parent
COMMANDS = runpy.run_path(str(FOLDER / "commands.py"))
RESULTS = runpy.run_path(str(FOLDER / "results.py"))
MADE = "<!-- Made by `make docs` from the program; do not edit. -->"


def pages() -> dict[str, str]:
    """File name and text of every generated page."""
    return {
        "commands.md": COMMANDS["page"](),
        "mta.1": COMMANDS["manual"](),
        "settings.md": _settings_page(),
        "serve-parameters.md": _parameters_page(),
        "bases.md": _bases_page(),
        "cost.md": _cost_page(),
        "results/README.md": RESULTS["results_page"](),
        "results/stacks.md": _stacks_page(),
        "tour.md": RESULTS["tour"](),
        "../README.md": RESULTS["readme"](),
    }


def _bases_page() -> str:
    """The page that `bases.py` makes."""
    page: str = runpy.run_path(str(FOLDER / "bases.py"))["page"]()
    return page


def _cost_page() -> str:
    """The page that `cost.py` makes."""
    page: str = runpy.run_path(str(FOLDER / "cost.py"))["page"]()
    return page


def _stacks_page() -> str:
    """results/stacks.md with its tables."""
    made = runpy.run_path(str(FOLDER / "stacks.py"))
    parts = [
        made["arms_table"]("fresh", ("alone", "shown")),
        made["arms_table"]("few", ("alone",)),
        made["arms_table"]("commits", ("alone", "shown")),
        made["arms_table"]("reviews", ("alone", "shown")),
        made["arms_table"]("reviews-rate", ("alone", "shown")),
        made["arms_table"]("tags-rate", ("alone", "shown")),
        made["arms_table"]("larger", ("alone", "shown")),
        made["arms_table"]("voice", ("alone",)),
        made["arms_table"]("voice-anchors", ("alone",)),
        made["arms_table"]("voice-strong", ("alone",)),
        made["arms_table"]("screen", ("alone", "shown")),
        made["curves_table"]("passes"),
        made["stopping_line"]("passes"),
        made["curves_table"]("agents"),
        made["curves_table"]("reviews-passes"),
        made["stopping_line"]("reviews-passes"),
        made["curves_table"]("tags-passes"),
        made["stopping_line"]("tags-passes"),
        made["curves_table"]("taste-passes"),
        made["stopping_line"]("taste-passes"),
        made["louder_table"]("louder"),
        made["louder_line"]("louder"),
    ]
    page: str = RESULTS["fill"]((FOLDER / "results" / "stacks.md").read_text(encoding="utf-8"), parts)
    return page


def _parameters_page() -> str:
    """Every parameter of the server's bodies."""
    from mta_cli.serving.request_bodies import REFUSED, WITHOUT_EFFECT, ChatBody, CompletionBody, EmbeddingBody

    bodies = {"chat": ChatBody, "completions": CompletionBody, "embeddings": EmbeddingBody}
    honoured = dict.fromkeys(name for body in bodies.values() for name in body.__struct_fields__)
    rows = []
    for name in sorted({*honoured, *REFUSED, *WITHOUT_EFFECT}):
        cells = [
            "honoured" if name in body.__struct_fields__ else "no effect" if name in WITHOUT_EFFECT else "refused"
            for body in bodies.values()
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} | {_cell(REFUSED.get(name, ''))} |")
    return (
        "\n\n".join(
            [
                "# Parameters of the server",
                MADE,
                " ".join(
                    (
                        "What `mta serve` does with the parameters of OpenAI's interface.",
                        "A refusal is 400 and names the parameter. `null` counts as left out, and so do `[]`, `{}`,",
                        "false and values that change nothing (`tool_choice: none`) where all three endpoints refuse.",
                        "`store: true` is refused, and any other name.",
                        "`response_format` takes `text`, `json_object` and `json_schema`.",
                        "An answer that is a label is always the best one, whatever the sampling.",
                    )
                ),
                "\n".join([f"| parameter | {' | '.join(bodies)} | why |", "|---|---|---|---|---|", *rows]),
            ]
        )
        + "\n"
    )


def _settings_page() -> str:
    known = all_settings()
    parts = [
        "# Settings",
        MADE,
        "A value is taken from the first of these that gives one: the command's flag, its `--preset`, the environment, "
        f"`{SETTINGS_FILE_NAME}` in the store's directory, your own `{SETTINGS_FILE_NAME}` (in the "
        "platform's configuration directory, or the file that `MTA_CONFIG` names), the default. "
        "`--dry-run` shows every value of a job and where it came from; `mta config list` shows all, and "
        "`mta config set` changes one.",
        "```toml\n[bank]\nrank = 8\n\n[adapt]\nshots = 10\n```",
        "Besides these, `MTA_STORE` names the store's directory and `MTA_MODELS` the directory of models.",
    ]
    for section in OPTION_CLASSES:
        parts.append(f"## `[{section.section}]`")
        parts.append(" ".join((section.__doc__ or "").split()))
        rows = [_setting_row(known[key]) for key in known if key.startswith(section.section + ".")]
        parts.append(
            "\n".join(["| setting | environment | default | allowed | meaning |", "|---|---|---|---|---|", *rows])
        )
    parts += ["## Presets", "`--preset NAME` of `mta bank build`, `mta user fuse` and `mta user adapt` sets these."]
    for name, values in PRESETS.items():
        rows = [f"| `{key}` | `{str(value).lower()}` |" for key, value in values.items()]
        parts += [f"### `{name}`", "\n".join(["| setting | value |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _setting_row(setting: Setting) -> str:
    default = "not set" if setting.default is None else f"`{str(setting.default).lower()}`"
    cells = (f"`{setting.key}`", f"`{setting.env_variable}`", default, _cell(_allowed(setting)), _cell(setting.help))
    return f"| {' | '.join(cells)} |"


def _allowed(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(setting.choices)
    if setting.kind is bool:
        return "true, false"
    if setting.kind is str:
        return "text"
    return f"{setting.minimum} to {setting.maximum}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the pages beside this file."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    chart = runpy.run_path(str(FOLDER / "stacks.py"))["chart"]()  # no page: matplotlib's next version draws another
    (FOLDER / "results" / "stacks" / "gain.svg").write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()

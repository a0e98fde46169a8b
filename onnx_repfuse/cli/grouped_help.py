"""`--help` in groups, in the order of `GROUPS`."""

from __future__ import annotations

import click

from onnx_repfuse.cli.arguments import GROUPS, declared

__all__ = ["GroupedCommand", "group_of"]


def group_of(parameter: click.Parameter) -> str:
    """The key of `GROUPS` for an option; --list-kinds, --version and --help are not declared, and are runs."""
    tables = {entry.name: option.table for entry, option in declared()}
    return tables.get(parameter.name or "", "run")


class GroupedCommand(click.Command):
    """A command whose options have a heading for each group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group."""
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups[group_of(parameter)].append(record)
        # All groups have one column, or it would jump.
        width = max(
            (len(flags) for rows in groups.values() for flags, _ in rows if len(flags) <= 30), default=0
        )
        for name, rows in groups.items():
            if rows:
                with formatter.section(GROUPS[name]):
                    formatter.write_dl([(flags.ljust(width), text) for flags, text in rows])

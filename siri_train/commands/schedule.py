"""``siri-train schedule``: the cap over the steps, in the terminal and as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from siri_train.commands.output import encodable
from siri_train.config.base import ConfigError
from siri_train.config.paths import check_file, user_path
from siri_train.config.recipe import load_config
from siri_train.files import replace_text
from siri_train.report.schedule_plot import caps_text, plot_svg, plot_text
from siri_train.terminal.lines import broken, terminal_width


def show_schedule(recipe: str, overrides: Sequence[str], svg: str | None) -> None:
    """Print the plot of a recipe's schedule and write it as SVG.

    Args:
        recipe: a file or the name of a packaged recipe.
        overrides: ``key=value`` each.
        svg: the file to write; None: ``schedule.svg`` in the run's folder.

    Raises:
        ConfigError: a recipe that cannot be read, or a file that cannot be written.
    """
    try:
        config = load_config(recipe, overrides)
    except ConfigError as error:
        if "must hold one sequence" not in str(error):
            raise
        # a plot packs no sequences: a cap above train.token_budget is shown
        roomy = [*overrides, f"train.token_budget={2**26}"]
        config = load_config(recipe, roomy)
    if svg is not None:
        path = check_file(user_path(svg, "--svg"), "--svg")
    else:
        path = check_file(user_path(config.run_dir, "output") / "schedule.svg", "output")
    schedule, steps = config.schedule.build(), config.train.steps
    width = max(24, min(100, terminal_width()))  # the plot's least
    print(encodable(plot_text(schedule, steps, width, 16)))
    print(f"\n{caps_text(schedule, steps, width)}")
    said = [schedule.forecast] if schedule.forecast else []
    if schedule.kind.reward is not None:
        reward = schedule.kind.reward
        said.append(f"the cap does not move: the phases act through the reward {reward}")
    for text in said:
        print(encodable(broken(text, width)))
    replace_text(path.resolve(), plot_svg(schedule, steps))  # a link stays one
    print(f"plot: {path}")

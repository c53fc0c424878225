"""The run folder's pictures and ``index.html``, which shows them and opens without a server.

All are written at each validation, at each checkpoint and at the end, whole or not at all, from ``log.csv`` and the
last evaluation. Where drawing fails, there is one warning, and the training goes on.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from atrous.atomic import write_text, written_whole
from atrous.data.datasets.dataset import SegmentationDataset
from atrous.data.labels import Labels
from atrous.data.palette import drawn_palette
from atrous.data.sampling import Presence
from atrous.evaluation.evaluate import Evaluation
from atrous.messages import counted
from atrous.training.config import Recipe
from atrous.training.log_file import Log, read_log
from atrous.training.pictures import draw_confusion, draw_curves, draw_examples
from atrous.training.verdict import Mistake, Outcome, advice, mistakes, next_commands, verdict

CURVES, CONFUSION, EXAMPLES, PAGE = "curves.png", "confusion.png", "predictions.jpg", "index.html"
SHOWN = 8
"""Images in ``predictions.jpg``."""
_REFRESH = 20
"""Seconds after which the page of a running training loads itself again."""
_STYLE = """
:root { color-scheme: light dark; --ink: #20242c; --soft: #6b7280; --line: #e3e6eb; --bar: #2563be; --back: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --soft: #9aa3b2; --line: #343a46; --back: #15181d } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 0 auto;
  padding: 16px; max-width: 1000px }
h1 { font-size: 1.35rem; margin: 0 0 2px; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin: 28px 0 8px }
p { margin: 6px 0 } .soft { color: var(--soft); font-size: .9rem } .verdict { font-size: 1.15rem }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px }
.wide { overflow-x: auto } .wide img { max-width: none } progress { width: 100%; height: 8px }
table { border-collapse: collapse; width: 100%; font-size: .95rem } td, th { padding: 4px 8px; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap } th { color: var(--soft); font-weight: normal }
td:first-child, th:first-child { text-align: left; white-space: normal; overflow-wrap: break-word }
.chip { display: inline-block; width: 12px; height: 12px; border: 1px solid var(--soft); border-radius: 3px;
  margin-right: 7px; vertical-align: -1px } .bar { display: inline-block; height: 9px; background: var(--bar);
  border-radius: 2px } td.bars { width: 35%; text-align: left }
@media (max-width: 600px) { .bars { display: none } }
pre { background: color-mix(in srgb, var(--line) 45%, transparent); padding: 10px 12px; border-radius: 6px;
  overflow-x: auto; font-size: .85rem }
"""


@dataclass
class RunPage:
    """What shows a run; all its methods are for the first process alone.

    Attributes:
        run: the run's folder.
        recipe: of the run.
        data: as the user named it.
        labels: the classes.
        held_out: what is validated on, or None.
        presence: which image to train on has which class, N,K.
        headline: network, data and steps, the last of its lines; warnings before it.
        warn: told, once, why something could not be drawn.
    """

    run: Path
    recipe: Recipe
    data: str | Path
    labels: Labels
    presence: Presence
    held_out: SegmentationDataset | None
    headline: str
    warn: Callable[[str], None] = print
    _mistakes: tuple[Mistake, ...] = ()
    _warned: bool = False

    def show(self, evaluation: Evaluation) -> Image.Image | None:
        """Draw what is of the weights that are kept: the confusion matrix and the images that came out worst.

        Returns:
            The picture of the images; None if there is none, or it could not be drawn.
        """
        sheet: Image.Image | None = self._tried("predictions", lambda: self._show(evaluation))
        return sheet

    def _show(self, evaluation: Evaluation) -> Image.Image | None:
        if evaluation.confusion is not None:
            counts = evaluation.confusion.numpy()
            self._mistakes = tuple(mistakes(counts))
            _save(draw_confusion(counts, self.labels.names), self.run / CONFUSION)
        if not evaluation.worst or self.held_out is None:
            return None
        sheet = draw_examples(evaluation.worst, self.held_out)
        _save(sheet, self.run / EXAMPLES)
        return sheet

    def update(self, state: str, *, refresh: bool) -> None:
        """Draw the curves and write the page."""
        self._tried("the run's page", lambda: self._update(state, refresh))

    def _update(self, state: str, refresh: bool) -> None:
        log = read_log(self.run / "log.csv")
        if log.loss:
            _save(draw_curves(log, self.recipe.schedule.iterations), self.run / CURVES)
        write_text(self.run / PAGE, self.render(log, state, refresh=refresh))

    def closing_words(self) -> list[str]:
        """Verdict, advice and the next two commands; none if the log cannot be read."""

        def words() -> list[str]:
            outcome = self.outcome(read_log(self.run / "log.csv"))
            commands = next_commands(self.run, str(self.data), validated=bool(outcome.iou))
            return [verdict(outcome), advice(outcome), "next:", *(f"  {command}" for command in commands)]

        return self._tried("the verdict", words) or []

    def outcome(self, log: Log) -> Outcome:
        """What is known of the weights that are kept."""
        best = log.best
        iou = next((iou for step, iou in log.iou if best and step == best[0]), ())
        iterations = self.recipe.schedule.iterations
        with_class = tuple(int(count) for count in self.presence.sum(axis=0))
        return Outcome(self.labels.names, len(self.presence), with_class, log, iterations, iou, self._mistakes)

    def _tried(self, what: str, draw: Callable[[], Any]) -> Any:
        try:
            return draw()
        except Exception as error:  # a picture is not worth a training, whatever stands in its way
            if not self._warned:
                self._warned = True
                why = " ".join(str(error).split()) or type(error).__name__
                self.warn(f"Warning: {what} could not be drawn, and the training goes on: {why}")
            return None

    def render(self, log: Log, state: str, *, refresh: bool) -> str:
        """The page as HTML that asks for nothing but the files beside it."""
        outcome = self.outcome(log)
        done = max((step for step, _ in log.loss), default=0)
        steps = self.recipe.schedule.iterations
        parts = [
            f'<progress value="{done}" max="{steps}"></progress>',
            f"<p>{_text(state)}</p>",
            self._told(outcome, refresh),
            self._picture(CURVES, "Curves", done, "loss, mIoU and learning rate over the steps"),
            _table(outcome, self.labels),
            self._picture(CONFUSION, "What is taken for what", done, "confusion matrix", wide=True),
            self._picture(EXAMPLES, "Where it does worst", done, "photograph, truth and prediction, the worst first"),
            f"<h2>This run</h2><p>{_text(self.headline.splitlines()[-1])}</p>",
            f"<details><summary>Recipe</summary><pre>{_text(self.recipe.to_yaml())}</pre></details>",
            f'<p class="soft">written {datetime.now():%Y-%m-%d %H:%M:%S}</p>',
        ]
        again = f'<meta http-equiv="refresh" content="{_REFRESH}">' if refresh else ""
        name = _text(self.run.resolve().name)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{again}'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}: {done}/{steps}</title>'
            f"<style>{_STYLE}</style></head>\n<body><h1>{name}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
        )

    def _told(self, outcome: Outcome, running: bool) -> str:
        if not outcome.iou and running:
            return ""
        commands = "\n".join(next_commands(self.run, str(self.data), validated=bool(outcome.iou)))
        best = outcome.log.best
        score = f"mIoU {best[1]:.4f} at step {best[0]}, whose weights are kept in best/. " if best else ""
        advised = "" if running else f"<p>{_text(advice(outcome))}</p><pre>{_text(commands)}</pre>"
        return f'<p class="verdict">{_text(verdict(outcome))}</p><p class="soft">{score}</p>{advised}'

    def _picture(self, file: str, heading: str, done: int, text: str, *, wide: bool = False) -> str:
        if not (self.run / file).exists():
            return ""
        # With the step behind it, the browser takes the new file and not its copy.
        kind = "wide" if wide else "fit"
        image = f'<a href="{file}"><img src="{file}?{done}" alt="{_text(text)}"></a>'
        return f'<h2>{heading}</h2><div class="{kind}">{image}</div>'


def _table(outcome: Outcome, labels: Labels) -> str:
    rows, palette = [], drawn_palette(labels)
    order: Sequence[int] = outcome.order or range(len(labels))
    unscored = [i for i in range(len(labels)) if i not in order]
    for i in (*order, *unscored):
        red, green, blue = palette[i]
        iou = outcome.iou[i] if outcome.iou else float("nan")
        bar = f'<span class="bar" style="width:{100 * iou:.0f}%"></span>' if iou == iou else ""
        chip = f'<span class="chip" style="background:rgb({red},{green},{blue})"></span>'
        rows.append(
            f"<tr><td>{chip}{_text(labels.names[i])}</td><td>{f'{iou:.4f}' if iou == iou else '–'}</td>"
            f'<td class="bars">{bar}</td><td>{outcome.with_class[i]}</td></tr>'
        )
    count = counted(outcome.images, "image")
    head = f'<tr><th>class</th><th>IoU</th><th class="bars"></th><th>in {count}</th></tr>'
    return f"<h2>Classes</h2><table>{head}{''.join(rows)}</table>"


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))


def _save(picture: Image.Image, path: Path) -> None:
    with written_whole(path) as file:
        if path.suffix == ".jpg":
            picture.save(file, format="JPEG", quality=78)
        else:
            picture.save(file, format="PNG")

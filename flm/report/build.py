"""A report from result records: its sections, each with its figure, its table, or the command that would fill it."""

from dataclasses import dataclass
from html import escape

from flm.measures.frontier_figure import perplexity_by
from flm.measures.plotting import run_colours
from flm.report import figures
from flm.report import page as report_page
from flm.report import tables as report_tables
from flm.report.comparison import compared, comparison_table, real_level
from flm.report.comparison_figure import comparison_figure
from flm.report.film_strip import film_figure
from flm.report.records import Film, Frontier, Results
from flm.report.tables import Table

CHECKPOINT = "eval.checkpoint_path=RUN/checkpoints/last.ckpt"


@dataclass
class Report:
    """A page and what is in it: PNG figures by name, and tables."""

    html: str
    figures: dict[str, bytes]
    tables: list[Table]


def make_report(results: Results, title: str, samples: int, characters: int, film_tokens: int, made_by: str) -> Report:
    """Args:
    samples, characters: how many texts of a set are shown, and how much of each.
    film_tokens: how much of a text a film shows.
    made_by: command and code behind this page.
    """
    return _Composer(results, samples, characters, film_tokens).report(title, made_by)


class _Composer:
    def __init__(self, results: Results, samples: int, characters: int, film_tokens: int):
        self.results, self.samples, self.characters, self.film_tokens = results, samples, characters, film_tokens
        self.figures: dict[str, bytes] = {}
        self.tables: list[Table] = []
        # a sweep over several checkpoints is several runs
        swept = {id(frontier.source): frontier.runs for frontier in results.frontiers}
        labels = [label for source in results.sources for label in swept.get(id(source), [source.label])]
        self.colours = run_colours(labels)

    def report(self, title: str, made_by: str) -> Report:
        sections = [
            ("runs", "What was run", self._runs()),
            *([("comparison", "Models side by side", self._comparison())] if len(self.colours) > 1 else []),
            ("frontier", "Perplexity at matched entropy", self._frontier()),
            ("diversity", "Diversity by steps", self._diversity()),
            ("film", "Film strip", self._films()),
            ("samples", "Samples beside real text", self._samples()),
            ("cross-entropy", "Loss along the clock", self._cross_entropy()),
            ("likelihood", "Likelihood", self._likelihood()),
            *([("responses", "Responses to prompts", self._responses())] if self.results.responses else []),
            *([("programs", "Programs", self._programs())] if self.results.programs else []),
            ("throughput", "Throughput", self._throughput()),
        ]
        count = len(self.results.sources)
        runs = len(self.colours)
        introduction = f"{count} result file{'s' * (count > 1)} of {runs} run{'s' * (runs > 1)}, side by side."
        html = report_page.document(title, introduction, sections, escape(made_by))
        return Report(html, self.figures, self.tables)

    def _figure(self, name: str, png: bytes, description: str) -> str:
        self.figures[name] = png
        return report_page.picture(png, description)

    def _table(self, content: Table) -> str:
        if not content.rows:
            return ""
        self.tables.append(content)
        return report_page.table(content)

    def _runs(self) -> str:
        return self._table(report_tables.runs_table(self.results)) + report_page.command_list(
            report_tables.commands(self.results)
        )

    def _comparison(self) -> str:
        rows = compared(self.results)
        html = report_page.paragraph(
            "One row for each model. Perplexities are read at the entropy of real text; one in brackets belongs to a setting "
            "that came only so near, and compares with nothing. An upper bound on bits per character says that the model is "
            "at least this good."
        )
        if any(row.quality for row in rows):
            scorer = self.results.frontiers[0].scorer
            name = perplexity_by(scorer)
            drawn = comparison_figure(rows, real_level(self.results), scorer, self.colours)
            html += self._figure("comparison", drawn, f"log {name} of each model by sampling steps, and by time a sample")
            html += report_page.paragraph(f"Scored by {scorer}.")
        return html + self._table(comparison_table(rows))

    def _frontier(self) -> str:
        if not self.results.frontiers:
            return report_page.missing(
                "No sweep among these results; this makes one:", f"python main.py mode=frontier {CHECKPOINT}"
            )
        html = report_page.paragraph(
            "A sampler trades perplexity for entropy, so models are compared where their entropies are equal: lower is better "
            "on one vertical line, and the line of real text is the one that matters."
        )
        by_scorer: dict[str, list[Frontier]] = {}
        for frontier in self.results.frontiers:
            by_scorer.setdefault(frontier.scorer, []).append(frontier)
        for index, (scorer, found) in enumerate(by_scorer.items(), 1):
            suffix = f"_{index}" if index > 1 else ""
            if len(by_scorer) > 1:
                html += f"<h3>Scored by {escape(scorer)}</h3>\n"
            drawn = figures.frontier_figure(found, self.colours)
            description = f"log {perplexity_by(scorer)} against entropy, scored by {scorer}"
            html += self._figure(f"frontier{suffix}", drawn, description)
            matched = report_tables.frontier_table(found)
            html += self._table(Table(f"frontier{suffix}", matched.columns, matched.rows))
        return html

    def _diversity(self) -> str:
        found = self.results.samples
        if not found:
            return report_page.missing("No measured samples; this makes some:", f"python main.py mode=sample_eval {CHECKPOINT}")
        html = report_page.paragraph(
            "Each number is to be read against real text of the same length and number: an entropy below it is repetition, "
            "one above it is noise."
        )
        html += self._figure("diversity", figures.diversity_figure(found, self.colours), "entropy and distinct-n by steps")
        return html + self._table(report_tables.diversity_table(found))

    def _films(self) -> str:
        by_run: dict[str, list[Film]] = {}
        for film in sorted(self.results.films, key=lambda film: film.steps):
            by_run.setdefault(film.source.label, []).append(film)
        if not by_run:
            command = f"python main.py mode=sample_eval {CHECKPOINT} sampling.film=true"
            return report_page.missing("No film; sampling leaves one when asked to:", command)
        html = report_page.paragraph(
            "One generation from noise to text: at each moment the token the model finds likeliest, shaded by its probability."
        )
        html += report_page.shading_key()
        for index, (label, films) in enumerate(by_run.items(), 1):
            pair = films[:1] + films[1:][-1:]
            suffix = f"_{index}" if index > 1 else ""
            if len(by_run) > 1:
                html += f"<h3>{escape(label)}</h3>\n"
            longest = max(len(frame.tokens) for film in pair for frame in film.frames)
            if longest > self.film_tokens:
                html += report_page.paragraph(f"The first {self.film_tokens} of {longest} tokens.")
            # in the page as text, which can be searched and hovered over; as a picture for other pages
            html += report_page.films(pair, self.film_tokens)
            self.figures[f"film_strip{suffix}"] = film_figure(pair)
        return html

    def _samples(self) -> str:
        found = self.results.samples
        if not found:
            return report_page.missing("No samples; this makes some:", f"python main.py mode=sample_eval {CHECKPOINT}")
        html = ""
        for run in found:
            if len(found) > 1:
                html += f"<h3>{escape(run.source.label)}</h3>\n"
            html += report_page.texts(run, self.samples, self.characters)
        return html

    def _cross_entropy(self) -> str:
        found = [run for run in self.results.trainings if run.by_tau]
        if not found:
            why = "No validation along the clock: give the folder of a training run with metrics (logger=csv):"
            return report_page.missing(why, "python main.py mode=report report.inputs=[RUN,...]")
        measures = sorted({_words(run.measure) for run in found if run.measure})
        html = report_page.paragraph(
            f"Last validation of each run: {', '.join(measures)} per token. The dashed line is the best decoder without "
            "context, which sees a position's own noised token and token frequencies: what lies below it was learned from "
            "context. Losses of two clocks or two algorithms are not comparable."
        )
        html += self._figure("ce_by_tau", figures.cross_entropy_figure(found, self.colours), "validation loss by tau")
        return html + self._table(report_tables.cross_entropy_table(found))

    def _likelihood(self) -> str:
        found = self.results.likelihoods
        if not found:
            return report_page.missing("No likelihood; this measures it:", f"python main.py mode=ppl_eval {CHECKPOINT}")
        html = report_page.paragraph(
            "Nats per token of held-out text. An upper bound says that the model is at least this good; perplexities per token "
            "compare only under one tokenizer, bits per byte and per character always."
        )
        html += self._table(report_tables.likelihood_table(found))
        drawn = [row for row in found if row.spans]
        if drawn:
            html += "<h3>Where the bound comes from</h3>\n"
            html += self._figure("likelihood", figures.likelihood_figure(drawn, self.colours), "nats per token summed along t")
        parts = self._table(report_tables.contribution_table(found))
        return html + (f"<details><summary>Contribution of each part</summary>{parts}</details>\n" if parts else "")

    def _responses(self) -> str:
        html = report_page.paragraph(
            "Against one reference response each. A score of several answers to a prompt is their mean; where it says best, "
            "that of the answer nearest to the reference. BLEU of the corpus is out of 100, all else out of 1."
        )
        return html + self._table(report_tables.answers_table("responses", self.results.responses, "prompts"))

    def _programs(self) -> str:
        html = report_page.paragraph(
            "Run against the tests of each problem. pass@k is the chance that one of k answers passes, compiled@k that one is "
            "a program at all; exact match is to the reference, letter by letter."
        )
        return html + self._table(report_tables.answers_table("programs", self.results.programs, "problems"))

    def _throughput(self) -> str:
        trainings, samples = self.results.trainings, self.results.samples
        train_speed, sample_speed = report_tables.training_speed_table(trainings), report_tables.sampling_speed_table(samples)
        if not train_speed.rows and not sample_speed.rows:
            return report_page.missing("No speed was measured; sampling and training do:", "python main.py mode=train")
        drawn = figures.throughput_figure(trainings, samples, self.colours)
        html = self._figure("throughput", drawn, "training tokens per second, and milliseconds per sample by steps")
        return html + self._table(train_speed) + self._table(sample_speed)


def _words(measure: str) -> str:
    return measure.replace("_", " ").replace(" ce ", " cross-entropy, ")

"""Tasks: how items become prompts and how answers are measured. Also the built-in tasks.

The built-in tasks are `free` and LaMP's (arXiv 2304.11406). Every LaMP question repeats a long instruction.
`Task.strip_instruction` removes it, and the prompt gives a short one instead, because every token of a prompt costs
training time. See `prompts` for token ids and `task_files` for TOML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mta_cli.errors import BadInput

TaskKind = Literal["label", "score", "text"]
Metric = Literal["accuracy", "mae", "rouge"]

METRIC_BY_KIND: dict[TaskKind, Metric] = {"label": "accuracy", "score": "mae", "text": "rouge"}
INPUT_PLACEHOLDER, OUTPUT_PLACEHOLDER = "{input}", "{output}"
DEFAULT_HEADER = "Earlier:"
TEMPLATE_SYSTEM_MESSAGE = "{default}"
PATTERN_TIMEOUT_SECONDS = 1.0  # CPU seconds; a reasonable pattern takes microseconds


@dataclass(frozen=True)
class Task:
    """How the items of one task are shown to a model, and how its answers are measured.

    - `prompt` asks a query and contains `{input}`. `learning_prompt` replaces it for history items in training, if they
      ask something else than queries do.
    - `item` shows a history item in a prompt; it contains `{output}` and usually `{input}`. `history_header` precedes
      the shown items.
    - `system` is the system message: "" means the shortest that the base's template allows, `{default}` the template's
      own.
    - `input_field` and `output_field` are keys of a history entry in LaMP's files; the texts of several keys are joined
      by line breaks.
    - `question_pattern` is a regular expression for raw questions: only the text of its groups named `input…` is kept.
    - `query_tokens` is the most tokens of a query, `item_tokens` of a shown item (input and output together),
      `answer_tokens` of an answer.
    """

    name: str
    kind: TaskKind
    description: str
    prompt: str = INPUT_PLACEHOLDER
    item: str = f"{INPUT_PLACEHOLDER}\n{OUTPUT_PLACEHOLDER}"
    learning_prompt: str | None = None
    history_header: str = DEFAULT_HEADER
    system: str = ""
    labels: tuple[str, ...] = ()
    metric: Metric = "rouge"
    input_field: tuple[str, ...] = ("input",)
    output_field: tuple[str, ...] = ("output",)
    question_pattern: str | None = None
    query_tokens: int = 256
    item_tokens: int = 64
    answer_tokens: int = 64

    def strip_instruction(self, raw: str) -> str:
        """A raw question without its instruction; `raw` unchanged if there is no pattern or it does not match.

        Raises BadInput if matching times out.
        """
        if self.question_pattern is None:
            return raw
        import regex  # `re` has no timeout, and most patterns, including the built-in ones, take hours on some texts

        try:
            match = regex.match(self.question_pattern, raw, timeout=PATTERN_TIMEOUT_SECONDS)
        except (TimeoutError, MemoryError) as error:
            raise BadInput(
                f"question_pattern of task {self.name} takes too long on the question {raw[:60]!r}…",
                hint="simplify the pattern, or remove the question from the file",
            ) from error
        if match is None:
            return raw
        kept = [text for name, text in match.groupdict().items() if name.startswith("input") and text is not None]
        return "\n".join(kept)

    def fill_prompt(self, text: str) -> str:
        """The prompt that asks `text`."""
        return self.prompt.replace(INPUT_PLACEHOLDER, text)

    def fill_learning_prompt(self, text: str) -> str:
        """The training prompt of a history item with input `text`: `learning_prompt`, or `prompt` if there is none."""
        return (self.learning_prompt if self.learning_prompt is not None else self.prompt).replace(
            INPUT_PLACEHOLDER, text
        )

    def fill_item(self, text: str, answer: str) -> str:
        """A history item as a prompt shows it. Placeholders inside `text` and `answer` stay as they are."""
        parts = re.split(r"(\{input\}|\{output\})", self.item)
        return "".join({INPUT_PLACEHOLDER: text, OUTPUT_PLACEHOLDER: answer}.get(part, part) for part in parts)


MOVIE_TAGS = (
    "sci-fi",
    "based on a book",
    "comedy",
    "action",
    "twist ending",
    "dystopia",
    "dark comedy",
    "classic",
    "psychology",
    "fantasy",
    "romance",
    "thought-provoking",
    "social commentary",
    "violence",
    "true story",
)
NEWS_CATEGORIES = (
    "women",
    "religion",
    "politics",
    "style & beauty",
    "entertainment",
    "culture & arts",
    "sports",
    "science & technology",
    "travel",
    "business",
    "crime",
    "education",
    "healthy living",
    "parents",
    "food & drink",
)
DEFAULT_SCORE_LABELS = ("1", "2", "3", "4", "5")

_TASKS = (
    Task(
        name="lamp-1",
        kind="label",
        description="Citation: which of two papers an author cites; the history is the author's own papers",
        prompt="I wrote the paper {input}\nDo I cite [1] or [2]?",
        item='"{output}" {input}',
        learning_prompt="{input}\nTitle of this paper of mine:",
        history_header="My papers:",
        labels=("[1]", "[2]"),
        metric="accuracy",
        input_field=("abstract",),
        output_field=("title",),
        question_pattern=r"(?s)For an author who has written the paper with the title (?P<input>.*?),"
        r" which reference is related\? .*? without further explanation\.\s*(?P<input_choices>\[1\].*)",
        query_tokens=128,
        item_tokens=48,
        answer_tokens=48,
    ),
    Task(
        name="lamp-2",
        kind="label",
        description="Movie tagging: which of fifteen tags somebody gives a movie",
        prompt="{input}\nMy tag for this movie:",
        item="{input}\nTag: {output}",
        history_header="Movies I tagged:",
        labels=MOVIE_TAGS,
        metric="accuracy",
        input_field=("description",),
        output_field=("tag",),
        question_pattern=r"(?s)Which tag does this movie relate to .*?tags: \[.*?\]\s*description: (?P<input>.*)",
        query_tokens=56,
        item_tokens=24,
        answer_tokens=8,
    ),
    Task(
        name="lamp-2n",
        kind="label",
        description="News categories: which of fifteen categories an author files an article under",
        prompt="{input}\nMy category for this article:",
        item="{input}\nCategory: {output}",
        history_header="Articles I filed:",
        labels=NEWS_CATEGORIES,
        metric="accuracy",
        input_field=("text",),
        output_field=("category",),
        question_pattern=r"(?s)Which category does this article .*?categories: \[.*?\]\s*article: (?P<input>.*)",
        query_tokens=64,
        item_tokens=28,
        answer_tokens=8,
    ),
    Task(
        name="lamp-3",
        kind="score",
        description="Product rating: the score from 1 to 5 that somebody gives with a review",
        prompt="{input}\nMy score from 1 to 5:",
        item="{input}\nScore: {output}",
        history_header="Scores I gave:",
        labels=DEFAULT_SCORE_LABELS,
        metric="mae",
        input_field=("text",),
        output_field=("score",),
        question_pattern=r"(?s)What is the score .*? without further explanation\. review: (?P<input>.*)",
        query_tokens=64,
        item_tokens=24,
        answer_tokens=4,
    ),
    Task(
        name="lamp-4",
        kind="text",
        description="News headline: the headline an author gives an article",
        prompt="{input}\nMy headline for this article:",
        item="{input}\nHeadline: {output}",
        history_header="Headlines I wrote:",
        input_field=("text",),
        output_field=("title",),
        question_pattern=r"(?s)Generate a headline for the following article: (?P<input>.*)",
        query_tokens=160,
        item_tokens=48,
        answer_tokens=32,
    ),
    Task(
        name="lamp-5",
        kind="text",
        description="Scholarly title: the title an author gives a paper",
        prompt="{input}\nMy title for this paper:",
        item="{input}\nTitle: {output}",
        history_header="Titles I wrote:",
        input_field=("abstract",),
        output_field=("title",),
        question_pattern=r"(?s)Generate a title for the following abstract of a paper: (?P<input>.*)",
        query_tokens=160,
        item_tokens=48,
        answer_tokens=32,
    ),
    Task(
        name="lamp-7",
        kind="text",
        description="Tweet paraphrase: a tweet as somebody would put it; the history is tweets without a question",
        prompt="{input}\nThis tweet in my words:",
        item="{output}",
        learning_prompt="A tweet in my words:",
        history_header="Tweets I wrote:",
        input_field=("text",),
        output_field=("text",),
        question_pattern=r"(?s)Paraphrase the following tweet without any explanation .*?: (?P<input>.*)",
        query_tokens=96,
        item_tokens=64,
        answer_tokens=96,
    ),
    Task(
        name="free",
        kind="text",
        description="Anything: an input and the output that somebody would give",
        prompt=INPUT_PLACEHOLDER,
        item=f"Q: {INPUT_PLACEHOLDER}\nA: {OUTPUT_PLACEHOLDER}",
        history_header="What I said before:",
        system=TEMPLATE_SYSTEM_MESSAGE,
        query_tokens=1024,
        item_tokens=256,
        answer_tokens=512,
    ),
)

BUILTIN_TASKS: dict[str, Task] = {task.name: task for task in _TASKS}

"""The texts of an export: a README on how to run it, and a Modelfile for Ollama. They name neither user nor anchors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.pipeline.models.bases import weights_origin
from mta_cli.pipeline.personalize.export_formats import LORA_FILE, MODEL_FILE, ExportFormat
from mta_cli.text.formatting import pluralise

if TYPE_CHECKING:
    from mta_cli.engine.text.prompts import HistoryExample, PromptBuilder
    from mta_cli.engine.text.tasks import Task

MODELFILE, EXAMPLES_FILE = "Modelfile", "examples.json"
PROMPT_FUNCTION = """import json
from pathlib import Path

SYSTEM, PREFACE = {system}, {preface}
HEADER = {header}
PROMPT = {prompt}
EXAMPLES = {examples}


def messages(question):
    \"\"\"The messages that ask a question: the user's own examples, then the question.\"\"\"
    shown = "\\n".join([HEADER, *(item["shown"] for item in EXAMPLES)]) + "\\n\\n" if EXAMPLES else ""
    return [*SYSTEM, {{"role": "user", "content": PREFACE + shown + PROMPT.replace("{{input}}", question)}}]
"""
TITLES = {
    "peft": "A LoRA of rank {rank} for {base}",
    "merged": "{base} with a LoRA of rank {rank} added to its weights",
    "gguf-lora": "A LoRA of rank {rank} for {base}, as GGUF",
    "gguf": "{base} with a LoRA of rank {rank} added to its weights, as GGUF",
}
RUN = {
    "peft": """transformers and PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"{argument}), ".")
```

vLLM serves it as `mine`: `vllm serve {base}{flag} --enable-lora --max-lora-rank {served_rank} --lora-modules mine=.`
""",
    "merged": """transformers: `AutoModelForCausalLM.from_pretrained(".")`. vLLM: `vllm serve .`.
Ollama: a Modelfile with `FROM .`. llama.cpp: `convert_hf_to_gguf.py . --outfile model.gguf`.
""",
    "gguf-lora": """llama.cpp: `llama-server -m BASE.gguf --lora {file}`, where BASE.gguf is the base as GGUF.
Ollama: in `Modelfile`, write the base's name after `FROM`, then `ollama create mine -f Modelfile`.
""",
    "gguf": """llama.cpp: `llama-server -m {file}`. LM Studio: put the file into its models folder.
Ollama: `ollama create mine -f Modelfile`.
""",
}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of --max-lora-rank


@dataclass(frozen=True)
class ExportCard:
    """The facts for the texts of an export. `notes` are sentences on how it differs from the user's model.

    `base` is the base's name for readers, and `loadable` its name in commands. `revision` is the commit or branch that
    was pulled from the hub. `examples` are the exported items of the user.
    """

    form: ExportFormat
    base: str
    loadable: str
    fingerprint: str
    rank: int
    task: Task
    notes: tuple[str, ...] = ()
    revision: str | None = None
    examples: tuple[HistoryExample, ...] = ()

    def readme(self, prompter: PromptBuilder) -> bytes:
        """The README: how to run the model, and a function that makes mta's prompts.

        The prompts are chat messages, or plain text if the base has no chat template.
        """
        template = prompter.tokenizer.chat_template
        how = (
            "these messages, in the base's own chat template"
            if template
            else "the content of this message, followed by a line break"
        )
        argument = f', revision="{self.revision}"' if self.revision else ""
        flag = f" --revision {self.revision}" if self.revision else ""
        served = next((rank for rank in VLLM_RANKS if rank >= self.rank), VLLM_RANKS[-1])
        file = LORA_FILE if self.form == "gguf-lora" else MODEL_FILE
        run = RUN[self.form].format(base=self.loadable, argument=argument, flag=flag, served_rank=served, file=file)
        origin = weights_origin(self.fingerprint)
        unknown = f"`BASE` is the folder or repository of {self.base}." if self.loadable == "BASE" else ""
        apart = (
            f"The base in mta is {origin}, so answers differ a little with the hub's weights. For the same "
            f"answers, load the folder that `mta model path {self.base}` prints."
        )
        parts = [
            "---\nlibrary_name: peft\ntags: [lora]\n---\n" if self.form == "peft" else "",
            TITLES[self.form].format(rank=self.rank, base=self.base) + f", fingerprint `{self.fingerprint}`.",
            apart if origin and self.form in ("peft", "gguf-lora") else "",
            *self.notes,
            run.strip(),
            unknown if self.form == "peft" else "",
            f"The prompts of mta are {how}:",
            f"```python\n{self._prompt_function(prompter)}```",
            self._about_examples(),
        ]
        return ("\n\n".join(part for part in parts if part) + "\n").encode()

    def _prompt_function(self, prompter: PromptBuilder) -> str:
        """Python code of a function that makes the same messages for a question as mta does with these examples."""
        *system, asked = prompter.messages(self.task.prompt)
        preface = asked["content"].removesuffix(self.task.prompt)
        return PROMPT_FUNCTION.format(
            system=repr(system),
            preface=repr(preface),
            header=repr(self.task.history_header),
            prompt=repr(self.task.prompt),
            examples=f'json.loads(Path("{EXAMPLES_FILE}").read_text(encoding="utf-8"))' if self.examples else "[]",
        )

    def _about_examples(self) -> str:
        if not self.examples:
            return (
                "This folder contains no item of the user. mta shows some before the question, so its answers may "
                "differ. For the same prompts, use `mta ask --history-items 0 --memory off`."
            )
        return (
            f"`{EXAMPLES_FILE}` contains the newest {pluralise(len(self.examples), 'item')} of the user. mta shows "
            "those of all the user's items that are nearest to the question."
        )

    def examples_json(self, prompter: PromptBuilder) -> bytes:
        """The exported items of the user as JSON: input, output, and the text that shows the item in a prompt."""
        rows = [{"input": one.input, "output": one.output, "shown": prompter.render_item(one)} for one in self.examples]
        return (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode()

    def modelfile(self, prompter: PromptBuilder) -> bytes:
        """A Modelfile for Ollama. Its template puts each user message into the task's prompt, after the examples."""
        before, after, between, last = prompter.words_around_turns()
        asked = "{{ .Content }}".join(map(_literal, self.task.prompt.split("{input}")))
        content = prompter.messages(self.task.prompt, self.examples)[-1]["content"]
        before += content.removesuffix(self.task.prompt)
        end = prompter.tokenizer.convert_ids_to_tokens(prompter.end_id)
        template = (
            f"{_literal(before)}{{{{ $open := false }}}}{{{{ range $n, $_ := .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{{{{ if $open }}}}{_literal(between)}{{{{ end }}}}'
            f"{asked}{{{{ $open = true }}}}"
            f"{{{{ if eq (len (slice $.Messages $n)) 1 }}}}{_literal(last)}{{{{ else }}}}{_literal(after)}{{{{ end }}}}"
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{{{{ end }}}}{{{{ end }}}}'
        )
        source = "FROM ./" + MODEL_FILE if self.form == "gguf" else f"FROM {self.loadable}\nADAPTER ./{LORA_FILE}"
        lines = [source, f'TEMPLATE """{template}"""', f'PARAMETER stop "{end}"', "PARAMETER temperature 0"]
        if self.task.labels:
            lines.append("PARAMETER num_predict 16")
        return ("\n".join(lines) + "\n").encode()


def _literal(text: str) -> str:
    """A text escaped for Ollama's templates, for a place that is followed by `{{`."""
    is_plain = "{{" not in text and '"""' not in text and not text.endswith("{")
    return text if is_plain else f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"

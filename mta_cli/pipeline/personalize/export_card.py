"""The texts of an export: a README on how to run it, and a Modelfile for Ollama. They name neither user nor anchors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.pipeline.models.bases import weights_origin
from mta_cli.pipeline.personalize.export_formats import LORA_FILE, MODEL_FILE, ExportFormat

if TYPE_CHECKING:
    from mta_cli.engine.text.prompts import PromptBuilder
    from mta_cli.engine.text.tasks import Task

MODELFILE = "Modelfile"
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
Ollama: write the base's name into `Modelfile` behind `FROM`, then `ollama create mine -f Modelfile`.
""",
    "gguf": """llama.cpp: `llama-server -m {file}`. LM Studio: put the file into its models' folder.
Ollama: `ollama create mine -f Modelfile`.
""",
}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of --max-lora-rank


@dataclass(frozen=True)
class ExportCard:
    """The facts for the texts of an export. `notes` are the losses.

    `loadable` is the base's name in commands, `revision` the pulled revision.
    """

    form: ExportFormat
    base: str
    loadable: str
    fingerprint: str
    rank: int
    task: Task
    notes: tuple[str, ...] = ()
    revision: str | None = None

    def readme(self, prompter: PromptBuilder) -> bytes:
        """The README: how to run the model, and the messages of mta's prompts, or their text for a base without a chat
        template.
        """
        messages = prompter.messages(self.task.prompt)
        template = prompter.tokenizer.chat_template
        asked = messages if template else messages[-1]["content"] + "\n"
        how = (
            "under the base's own chat template with these messages"
            if template
            else "with this text, here as a JSON string"
        )
        argument = f', revision="{self.revision}"' if self.revision else ""
        flag = f" --revision {self.revision}" if self.revision else ""
        served = next((rank for rank in VLLM_RANKS if rank >= self.rank), VLLM_RANKS[-1])
        file = LORA_FILE if self.form == "gguf-lora" else MODEL_FILE
        run = RUN[self.form].format(base=self.loadable, argument=argument, flag=flag, served_rank=served, file=file)
        origin = weights_origin(self.fingerprint)
        folder = f"that `mta model path {self.base}` prints" if origin else f"or repository of {self.base}"
        unknown = f"`BASE` is the folder {folder}." if self.loadable == "BASE" else ""
        apart = f"The base is {origin}: this adapter does not belong to the hub's file of the same name."
        parts = [
            "---\nlibrary_name: peft\ntags: [lora]\n---\n" if self.form == "peft" else "",
            TITLES[self.form].format(rank=self.rank, base=self.base) + f", fingerprint `{self.fingerprint}`.",
            apart if origin and self.form in ("peft", "gguf-lora") else "",
            *self.notes,
            run.strip(),
            unknown if self.form == "peft" else "",
            f"mta asks it {how}, `{{input}}` being the question:",
            f"```json\n{json.dumps(asked, indent=2, ensure_ascii=False)}\n```",
            "By default mta also shows the user's own items before the question, in training too. An export has none: "
            "compare its answers with those of `mta ask --history-items 0 --memory off`.",
        ]
        return ("\n\n".join(part for part in parts if part) + "\n").encode()

    def modelfile(self, prompter: PromptBuilder) -> bytes:
        """A Modelfile that asks each message of a chat with the task's prompt."""
        before, after, between, last = prompter.words_around_turns()
        parts = prompter.messages(self.task.prompt)[-1]["content"].split("{input}")
        asked = "{{ .Content }}".join(map(_literal, parts))
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
    """A text escaped for Ollama's templates; it is followed by `{{`."""
    is_plain = "{{" not in text and '"""' not in text and not text.endswith("{")
    return text if is_plain else f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"

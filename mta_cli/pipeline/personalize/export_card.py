"""The texts of an export: a README on how to run it, and a Modelfile for Ollama. They name neither user nor anchors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), ".")
```

vLLM: `vllm serve {base} --enable-lora --max-lora-rank {served_rank} --lora-modules mine=.`; the model's name is `mine`.
""",
    "merged": """transformers: `AutoModelForCausalLM.from_pretrained(".")`. vLLM: `vllm serve .`.
Ollama: a Modelfile with `FROM .`. llama.cpp: `convert_hf_to_gguf.py . --outfile model.gguf`.
""",
    "gguf-lora": """llama.cpp: `llama-server -m BASE.gguf --lora {file}`, where BASE.gguf is {base} as GGUF.
Ollama: write the base's name into `Modelfile` behind `FROM`, then `ollama create mine -f Modelfile`.
""",
    "gguf": """llama.cpp: `llama-server -m {file}`. LM Studio: put the file into its models' folder.
Ollama: `ollama create mine -f Modelfile`.
""",
}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank takes


@dataclass(frozen=True)
class ExportCard:
    """What the texts of an export say of it. `notes` are sentences on what was lost."""

    form: ExportFormat
    base: str
    fingerprint: str
    rank: int
    task: Task
    notes: tuple[str, ...] = ()

    def readme(self) -> bytes:
        """How to run the model and how to ask it: the messages that it was trained with."""
        from mta_cli.engine.text.tasks import TEMPLATE_SYSTEM_MESSAGE

        system = [] if self.task.system == TEMPLATE_SYSTEM_MESSAGE else [self.task.system]
        messages = [{"role": "system", "content": text} for text in system]
        messages.append({"role": "user", "content": self.task.prompt})
        served = next((rank for rank in VLLM_RANKS if rank >= self.rank), VLLM_RANKS[-1])
        file = LORA_FILE if self.form == "gguf-lora" else MODEL_FILE
        parts = [
            "---\nlibrary_name: peft\ntags: [lora]\n---\n" if self.form == "peft" else "",
            TITLES[self.form].format(rank=self.rank, base=self.base) + f", fingerprint `{self.fingerprint}`.",
            *self.notes,
            RUN[self.form].format(base=self.base, served_rank=served, file=file).strip(),
            "It was trained under the base's own chat template with these messages, `{input}` being the question:",
            f"```json\n{json.dumps(messages, indent=2, ensure_ascii=False)}\n```",
        ]
        return ("\n\n".join(part for part in parts if part) + "\n").encode()

    def modelfile(self, prompter: PromptBuilder, base_name: str | None) -> bytes:
        """A Modelfile: each message of a chat is asked as the task asks its questions."""
        before, after, between, _ = prompter.words_around_turns()
        head, _, tail = self.task.prompt.partition("{input}")
        end = prompter.tokenizer.convert_ids_to_tokens(prompter.end_id)
        template = (
            f"{_literal(before)}{{{{ $open := false }}}}{{{{ range .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{{{{ if $open }}}}{_literal(between)}{{{{ end }}}}'
            f"{_literal(head)}{{{{ .Content }}}}{_literal(tail + after)}{{{{ $open = true }}}}"
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{{{{ end }}}}{{{{ end }}}}'
        )
        source = f"FROM ./{MODEL_FILE}" if self.form == "gguf" else f"FROM {base_name or 'BASE'}\nADAPTER ./{LORA_FILE}"
        lines = [source, f'TEMPLATE """{template}"""', f'PARAMETER stop "{end}"', "PARAMETER temperature 0"]
        if self.task.labels:
            lines.append("PARAMETER num_predict 16")
        return ("\n".join(lines) + "\n").encode()


def _literal(text: str) -> str:
    """A text that Ollama's templates print as it is."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or '"""' in text else text

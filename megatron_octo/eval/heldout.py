"""A run's held-out problems, answered by exported stages (`eval/<stage>/`) and before and after RL (`rl/<stage>/`)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.markup import escape

from megatron_octo.bridge.exports import checked_export, exported_digest, is_export
from megatron_octo.bridge.stages import last_checkpoint
from megatron_octo.data.heldout import read_heldout
from megatron_octo.errors import CheckpointError, DataError
from megatron_octo.eval.generate import Completion, generate
from megatron_octo.grading.boxes import last_boxed
from megatron_octo.reading.json_text import read_json_object, validated
from megatron_octo.recipe import Recipe
from megatron_octo.runtime.checkpoints import MANIFEST
from megatron_octo.runtime.files import sha256_of, sha256_of_json, write_json_atomically, write_text_atomically
from megatron_octo.runtime.run_folder import RunFolder

MAX_TOKENS = 96
"""Longer than any worked answer to a held-out problem."""
_ANSWERS_SHOWN = 3
_ASK_AGAIN = "remove it, to ask again"
_Share = Annotated[float, Field(ge=0, le=1)]


class _StageResult(BaseModel):
    """The fields of an earlier `eval/<stage>/heldout.json` that are printed."""

    model_config = ConfigDict(strict=True)
    right: int = Field(ge=0)
    problems: int = Field(ge=1)
    accuracy: _Share


class _RlResult(BaseModel):
    """The fields of an earlier `rl/<stage>/heldout.json` that are printed."""

    model_config = ConfigDict(strict=True)
    problems: int = Field(ge=1)
    accuracy_before: _Share
    accuracy_after: _Share


@dataclass(frozen=True)
class Answer:
    """A model's answer to one problem."""

    question: str
    response: str
    expected: str

    @property
    def is_right(self) -> bool:
        r"""Whether the last `\boxed{}` holds the expected text."""
        boxed = last_boxed(self.response)
        return boxed is not None and boxed.strip() == self.expected

    def as_row(self) -> dict[str, Any]:
        """A line of heldout.jsonl."""
        return {
            "question": self.question, "response": self.response, "expected": self.expected, "right": self.is_right,
        }  # fmt: skip


def answer_heldout(recipe: Recipe, run: RunFolder, stages: list[str], console: Console) -> None:
    """Let exported stages answer all held-out problems. Prints three answers and the share of right ones.

    A stage whose export has answered the same problems before is skipped.

    Raises:
        CheckpointError: a stage is not exported, or its export is no longer what was written.
        DataError: the run has no held-out problems.
        RuntimeSetupError: vLLM is not installed, or failed.
    """
    problems = read_heldout(run.heldout)
    digests = {stage: _export_digest(recipe, run, stage) for stage in stages}
    for stage, digest in digests.items():
        path = run.heldout_result(stage)
        inputs = {"checkpoint_manifest_sha256": digest, "problems_sha256": sha256_of(run.heldout)}
        if (known := _known_result(path, inputs, _StageResult)) is not None:
            console.print(f"{stage}: {_stage_score(known)}, already answered; skipped", highlight=False)
            continue
        checked_export(run.exported(stage), f"run `octo export {recipe.name} {stage}` again")
        with console.status(f"{stage}: vLLM answers {len(problems)} held-out problems"):
            completions = generate(run.exported(stage), [problem["prompt"] for problem in problems], MAX_TOKENS)
        answers = _answers(problems, completions)
        _write_rows(run.heldout_answers(stage), [answer.as_row() for answer in answers])
        right = sum(answer.is_right for answer in answers)
        result = {"accuracy": right / len(answers), "problems": len(answers), "right": right, **inputs}
        write_json_atomically(path, result)
        _print_answers(stage, result, answers, console)


def _export_digest(recipe: Recipe, run: RunFolder, stage: str) -> str | None:
    """SHA-256 of the manifest of the exported checkpoint, which must be the stage's last one."""
    export = run.exported(stage)
    digest = exported_digest(export)
    if not is_export(export):
        raise CheckpointError(f"{stage} is not exported; run `octo export {recipe.name} {stage}` first")
    if digest != sha256_of(last_checkpoint(recipe, run, stage) / MANIFEST):
        raise CheckpointError(
            f"{export} is of an older checkpoint than {stage} ends with; run `octo export {recipe.name} {stage}` first"
        )
    return digest


def _print_answers(stage: str, result: dict[str, Any], answers: list[Answer], console: Console) -> None:
    console.print(f"[bold]{escape(stage)}[/bold]: {_stage_score(result)}", highlight=False)
    for answer in answers[:_ANSWERS_SHOWN]:
        grade = "[green]right[/green]" if answer.is_right else f"[red]wrong[/red], it is {answer.expected}"
        response = escape(" ".join(answer.response.split()))
        console.print(f"  {escape(answer.question)}  ->  {response}  ({grade})", highlight=False, soft_wrap=True)


def answer_heldout_after_rl(recipe: Recipe, run: RunFolder, stage: str, console: Console) -> dict[str, Any]:
    """Let a stage's export and its model after RL answer all held-out problems; returns `rl/<stage>/heldout.json`.

    Both get the problems in the template of the recipe's `rl` section, which is what RL trains. A model that was only
    mid-trained may do better in another template.

    Raises:
        CheckpointError: RL from the stage is not complete, or the stage's export is no longer what was written.
        DataError: the run has no held-out problems.
        RuntimeSetupError: vLLM is not installed, or failed.
    """
    assert recipe.rl is not None
    folder = run.rl(stage)
    models = {"before": run.exported(stage), "after": folder.last}
    if not (folder.last / "config.json").is_file():
        raise CheckpointError(
            f"{folder.last}: RL from {stage} is not complete; run `octo rl {recipe.name} {stage}` first"
        )
    problems, template = read_heldout(run.heldout), recipe.rl.prompt_template
    inputs = {
        "models_sha256": {when: _weights_digest(model) for when, model in models.items()},
        "problems_sha256": sha256_of(run.heldout),
        "template": template,
    }
    if (known := _known_result(folder.heldout, inputs, _RlResult)) is not None:
        console.print(f"{_rl_score(stage, known)}, already answered; skipped", highlight=False, soft_wrap=True)
        return known
    checked_export(models["before"], f"run `octo export {recipe.name} {stage}` again")
    prompts = [template.format(prompt=problem["question"]) for problem in problems]
    rows, accuracy, limit = [], {}, max(MAX_TOKENS, recipe.rl.longest_response)
    for when, model in models.items():
        with console.status(f"{stage} {when} RL: vLLM answers {len(problems)} held-out problems"):
            # as in RL: no special tokens, and the same stop texts
            completions = generate(model, prompts, limit, special_tokens=False, stop=recipe.rl.stop)
        answers = _answers(problems, completions)
        accuracy[f"accuracy_{when}"] = sum(answer.is_right for answer in answers) / len(answers)
        rows += [answer.as_row() | {"when": when} for answer in answers]
    _write_rows(folder.heldout_answers, rows)
    result = {**accuracy, "problems": len(problems), **inputs}
    write_json_atomically(folder.heldout, result)
    console.print(_rl_score(stage, result), highlight=False, soft_wrap=True)
    return result


def _known_result(path: Path, inputs: dict[str, Any], model: type[BaseModel]) -> dict[str, Any] | None:
    """An earlier result with the same inputs; None if there is none."""
    known = read_json_object(path, DataError, _ASK_AGAIN) if path.is_file() else {}
    if {key: known.get(key) for key in inputs} != inputs:
        return None
    validated(known, model, str(path), DataError, _ASK_AGAIN)
    return known


def _weights_digest(model: Path) -> str:
    return sha256_of_json([[file.name, sha256_of(file)] for file in sorted(model.glob("*.safetensors"))])


def _stage_score(result: dict[str, Any]) -> str:
    return f"{result['right']} of {result['problems']} held-out problems right, {100 * result['accuracy']:.1f}%"


def _rl_score(stage: str, result: dict[str, Any]) -> str:
    return (
        f"{stage} after RL: {result['accuracy_after']:.1%} of {result['problems']} held-out problems right "
        f"(before: {result['accuracy_before']:.1%}) in the template {result['template']!r}"
    )


def _answers(problems: Sequence[dict[str, Any]], completions: Sequence[Completion]) -> list[Answer]:
    return [
        Answer(problem["question"], completion.text, problem["answer"])
        for problem, completion in zip(problems, completions, strict=True)
    ]


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))

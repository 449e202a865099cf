"""A run's held-out problems, answered by its exported stages: `eval/<stage>/heldout.json`."""

import json
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
SHOWN = 3
_ASK_AGAIN = "remove it, to ask again"
_Share = Annotated[float, Field(ge=0, le=1)]


class _StageResult(BaseModel):
    """What is shown of an earlier `eval/<stage>/heldout.json`."""

    model_config = ConfigDict(strict=True)
    right: int = Field(ge=0)
    problems: int = Field(ge=1)
    accuracy: _Share


class _ReinforcedResult(BaseModel):
    """What is shown of an earlier `rl/<stage>/heldout.json`."""

    model_config = ConfigDict(strict=True)
    problems: int = Field(ge=1)
    accuracy_before: _Share
    accuracy_after: _Share


@dataclass(frozen=True)
class Answer:
    """One problem, answered."""

    question: str
    response: str
    expected: str

    @property
    def is_right(self) -> bool:
        r"""Whether the last `\boxed{}` holds the expected text."""
        boxed = last_boxed(self.response)
        return boxed is not None and boxed.strip() == self.expected


def answer_heldout(recipe: Recipe, run: RunFolder, stages: list[str], console: Console) -> None:
    """Let the named stages answer all held-out problems; print three answers and the share of right ones.

    What was answered by the same export is not answered again, and said so.

    Raises:
        CheckpointError: a stage that is not exported, or whose export is no longer what was written.
        DataError: the run has no held-out problems.
        RuntimeSetupError: vLLM is not installed, or failed.
    """
    problems = read_heldout(run.heldout)
    digests = {stage: exported_digest(run.exported(stage)) for stage in stages}
    for stage, digest in digests.items():
        if not is_export(run.exported(stage)):
            raise CheckpointError(f"{stage} is not exported; run `octo export {recipe.name} {stage}` first")
        if digest != sha256_of(last_checkpoint(recipe, run, stage) / MANIFEST):
            raise CheckpointError(
                f"{run.exported(stage)} is of an older checkpoint than {stage} ends with; "
                f"run `octo export {recipe.name} {stage}` first"
            )
    for stage, digest in digests.items():
        path = run.evaluation(stage) / "heldout.json"
        before = _known(path)
        of = {"checkpoint_manifest_sha256": digest, "problems_sha256": sha256_of(run.heldout)}
        if {key: before.get(key) for key in of} == of:
            validated(before, _StageResult, str(path), DataError, _ASK_AGAIN)
            console.print(f"{stage}: {_score(before)}, answered already; skipped", highlight=False)
            continue
        checked_export(run.exported(stage), f"run `octo export {recipe.name} {stage}` again")
        with console.status(f"{stage}: vLLM answers {len(problems)} held-out problems"):
            completions = generate(run.exported(stage), [problem["prompt"] for problem in problems], MAX_TOKENS)
        answers = _answers(problems, completions)
        result = _write(run, stage, answers, of)
        console.print(f"[bold]{escape(stage)}[/bold]: {_score(result)}", highlight=False)
        for answer in answers[:SHOWN]:
            mark = "[green]right[/green]" if answer.is_right else f"[red]wrong[/red], it is {answer.expected}"
            said = " ".join(answer.response.split())
            console.print(f"  {escape(answer.question)}  ->  {escape(said)}  ({mark})", highlight=False, soft_wrap=True)


def answer_reinforced(recipe: Recipe, run: RunFolder, stage: str, console: Console) -> dict[str, Any]:
    """Let a stage's export and its model after RL answer all held-out problems; `rl/<stage>/heldout.json`.

    Both are asked in the template of the recipe's `rl` section: it is what RL trains, and a model that has only been
    mid-trained may know another one better.

    Raises:
        CheckpointError: RL from the stage is not done, or the stage's export is no longer what was written.
        DataError: the run has no held-out problems.
        RuntimeSetupError: vLLM is not installed, or failed.
    """
    assert recipe.rl is not None
    folder = run.reinforced(stage)
    models = {"before": run.exported(stage), "after": folder / "last"}
    if not (models["after"] / "config.json").is_file():
        raise CheckpointError(
            f"{models['after']}: RL from {stage} is not done; run `octo rl {recipe.name} {stage}` first"
        )
    problems, template = read_heldout(run.heldout), recipe.rl.prompt_template
    of = {
        "models_sha256": {when: _weights_digest(model) for when, model in models.items()},
        "problems_sha256": sha256_of(run.heldout),
        "template": template,
    }
    path = folder / "heldout.json"
    known = _known(path)
    if {key: known.get(key) for key in of} == of:
        validated(known, _ReinforcedResult, str(path), DataError, _ASK_AGAIN)
        console.print(f"{_reinforced_score(stage, known)}, answered already; skipped", highlight=False, soft_wrap=True)
        return known
    checked_export(models["before"], f"run `octo export {recipe.name} {stage}` again")
    prompts = [template.format(prompt=problem["question"]) for problem in problems]
    rows, accuracy, limit = [], {}, max(MAX_TOKENS, recipe.rl.longest_response)
    for when, model in models.items():
        with console.status(f"{stage} {when} RL: vLLM answers {len(problems)} held-out problems"):
            # as RL asks: the same tokens, and the same ends
            completions = generate(model, prompts, limit, special_tokens=False, stop=recipe.rl.stop)
        answers = _answers(problems, completions)
        accuracy[f"accuracy_{when}"] = sum(answer.is_right for answer in answers) / len(answers)
        rows += [_row(answer) | {"when": when} for answer in answers]
    write_text_atomically(folder / "heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    result = {**accuracy, "problems": len(problems), **of}
    write_json_atomically(path, result)
    console.print(_reinforced_score(stage, result), highlight=False, soft_wrap=True)
    return result


def _known(path: Path) -> dict[str, Any]:
    return read_json_object(path, DataError, _ASK_AGAIN) if path.is_file() else {}


def _reinforced_score(stage: str, result: dict[str, Any]) -> str:
    return (
        f"{stage} after RL: {result['accuracy_after']:.1%} of {result['problems']} held-out problems right "
        f"(before: {result['accuracy_before']:.1%}) in the template {result['template']!r}"
    )


def _weights_digest(model: Path) -> str:
    return sha256_of_json([[file.name, sha256_of(file)] for file in sorted(model.glob("*.safetensors"))])


def _score(result: dict[str, Any]) -> str:
    return f"{result['right']} of {result['problems']} held-out problems right, {100 * result['accuracy']:.1f}%"


def _answers(problems: list[dict[str, Any]], completions: list[Completion]) -> list[Answer]:
    return [
        Answer(problem["question"], completion.text, problem["answer"])
        for problem, completion in zip(problems, completions, strict=True)
    ]


def _row(answer: Answer) -> dict[str, Any]:
    return {
        "question": answer.question,
        "response": answer.response,
        "expected": answer.expected,
        "right": answer.is_right,
    }


def _write(run: RunFolder, stage: str, answers: list[Answer], of: dict[str, Any]) -> dict[str, Any]:
    folder = run.evaluation(stage)
    write_text_atomically(folder / "heldout.jsonl", "".join(json.dumps(_row(a)) + "\n" for a in answers))
    right = sum(answer.is_right for answer in answers)
    result = {"accuracy": right / len(answers), "problems": len(answers), "right": right, **of}
    write_json_atomically(folder / "heldout.json", result)
    return result

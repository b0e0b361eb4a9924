"""Measure tasks of lm-evaluation-harness (the `lm_eval` library), document by document."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..runtime.journal import Journal, identity
from ..runtime.progress import Progress
from .tasks import ROLLING, Document, Question, mean_metrics, silence
from .variants import Compared


class TeacherForced(HFLM):  # type: ignore[misc]
    """A model as the library wants it: one whole sequence a forward pass, without a cache.

    Log-softmax and sums are in float32 whatever the model's dtype: the library would add bfloat16.

    Args:
        model: may be attached to policies later; it is read at every call.
        context: longest sequence in tokens; longer documents are scored in windows of it, and
            longer prompts lose their beginning.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int
    ) -> None:
        silence()
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=1,
            max_length=context,
            softmax_dtype="float32",
        )

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(inps, use_cache=False).logits  # type: ignore[no-any-return]

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
    ) -> Any:
        return super()._loglikelihood_tokens(requests, True, override_bs)


def measure(
    model: TeacherForced, task: ConfigurableTask, document: Document
) -> dict[str, float | int]:
    """Return what a model gives on one document.

    Returns:
        ``nll`` (nats, summed over the document), ``tokens`` and ``words`` of rolling tasks, words
        as the library counts them in the text before it is detokenised; ``score.<metric>`` for
        each of :func:`mean_metrics` of other tasks.
    """
    ask = getattr(model, document.requests[0].request_type)
    metrics = task.process_results(document.doc, ask(document.requests, disable_tqdm=True))
    if task.OUTPUT_TYPE != ROLLING:
        return {f"score.{metric}": float(metrics[metric]) for metric in mean_metrics(task)}
    (text,) = document.requests[0].args
    log_likelihood, words = metrics["word_perplexity"]
    return {"nll": -log_likelihood, "tokens": len(model.tok_encode(text)), "words": words}


def measure_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    compared: Compared,
    *,
    context: int,
    folder: Path,
    resume: Path,
    out: Path,
) -> None:
    """Write one row a method, train sparsity and document.

    Finished documents are kept under ``resume`` until all are.

    Args:
        context: longest sequence in tokens.
        folder: that the model was loaded from.

    Raises:
        ConfigError: a task that cannot be measured.
        DataError: its data or the kernels are missing, damaged or of another model.
    """
    task, documents = question.load()
    variants = compared.variants(model)
    library = TeacherForced(model, tokenizer, context)
    key = identity(
        "harness",
        folder,
        compared.kernels,
        task=question.task,
        context=context,
        dtype=str(model.dtype),
        device=model.device.type,
        requests=[[request.args for request in document.requests] for document in documents],
        rows=[repr(document.doc) for document in documents],
        library=version("lm_eval"),
        **compared.matters,
    )
    journal = Journal(resume / f"{key}.jsonl")
    done = {(row["method"], row["train_sparsity"], row["document"]) for row in journal.rows}
    progress = Progress("harness", len(variants) * len(documents) - len(done))
    for variant in variants:
        with variant.attached(model, compared.scores):
            for document in documents:
                if (variant.method, variant.train_sparsity, document.name) in done:
                    continue
                values = measure(library, task, document)
                journal.extend([variant.columns | {"document": document.name} | values])
                shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
                progress.step(f"{variant.method}: {shown}")
    kind = "perplexity" if task.OUTPUT_TYPE == ROLLING else "scores"
    compared.save(out, journal.rows, kind)
    shutil.rmtree(resume, ignore_errors=True)

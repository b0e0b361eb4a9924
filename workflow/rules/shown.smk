# What people look at, by its files, and what that follows from.

import shlex

from pipeline.storage.files import sha256


def resource(*names):
    """Parameter: hashes of files of the package that are no code, so that changes are seen."""
    return [sha256(commands.RESOURCES / name) for name in names]


PAGE = ["tables.html", "tables.css", "tables.js"]


def titled(title):
    """Labels of a result in the report: its title alone.

    A further label that halves a category (three tables, three figures) becomes a switch there,
    and the page breaks over a title that exists on one side of it (Snakemake 9).
    """
    return {"shows": title}


def told(options):
    """Parameter: a specification, whose braces are no wildcards."""
    return lambda wildcards: as_json(options)


def tables():
    """Every table in every format."""
    return results("tables/{name}.{form}", name=TABLES, form=["md", "csv", "tex", "html"])


def figures():
    """Every figure in both formats."""
    return results("figures/{name}.{form}", name=FIGURES, form=["svg", "png"])


def examples():
    """Generated summaries side by side, if there are any."""
    wanted = any(task["kind"] == "summaries" for task in TASKS.values())
    return results("examples.{form}", form=["html", "md"] if wanted else [])


def comparison():
    """The paper's numbers beside ours."""
    return results("paper_vs_ours.{form}", form=["html", "md"])


def hashed_inputs():
    """What a run is traced by: downloads and local texts, weights, samples, prompts, kernels."""
    texts = {file for dataset in paths.texts_read(CONFIG) for file in files_of(dataset)}
    made = {*texts, *paths.made_inputs(CONFIG)}
    return [*sorted(made, key=str), *map(PATHS.kernels, grid.trainings(CONFIG))]


def longest_commands():
    """Words of the commands that take the most files."""
    yield paths.measured(CONFIG)
    yield [as_json(CONFIG), *hashed_inputs(), *tables(), *figures()]
    for training in grid.trainings(CONFIG):
        yield [*paths.parts_of(CONFIG, training, "safetensors")] * 2


# Linux takes 128 KiB; better said before a run than at its end.
if any(sum(len(shlex.quote(str(w))) + 1 for w in words) > 120_000 for words in longest_commands()):
    raise WorkflowError(
        "configuration: the files of this experiment do not fit on one command line; split it, for"
        " example by model or task."
    )

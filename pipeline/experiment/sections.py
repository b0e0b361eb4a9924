"""The configuration: a class a section, with every key's type, default and description.

The schema that configurations are checked against, and completed by, is made from these classes
(:mod:`pipeline.experiment.schema`). A default of :data:`ABSENT` is none: the key is left out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import MISSING as ABSENT
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)"
PATH_PATTERN = r"^[^-~{}\x00-\x1f\x7f][^{}\x00-\x1f\x7f]{0,999}$(?!\n)"

Name = Annotated[
    str,
    Field(
        pattern=NAME_PATTERN,
        description="Letters, digits, dot, dash and underscore; safe in paths and on command"
        " lines.",
    ),
]
FilePath = Annotated[
    str,
    Field(
        pattern=PATH_PATTERN,
        description="A path without braces and control characters, whose beginning is no option (-)"
        " and no home (~).",
    ),
]
UNIQUE = {"uniqueItems": True}
Names = Annotated[list[Name], Field(min_length=1, json_schema_extra=UNIQUE)]
Words = Annotated[list[str], Field(min_length=1, json_schema_extra=UNIQUE)]
Sparsities = Annotated[
    list[float],
    Field(
        min_length=1, json_schema_extra=UNIQUE, description="Budgets as fractions of the context."
    ),
]
Count = Annotated[int, Field(ge=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of a configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", regex_engine="python-re")


class Dataset(Section):
    """A text."""

    source: Literal["aclsum", "wikipedia_sample", "hub", "jsonl"] = Field(
        description="`aclsum` and `wikipedia_sample` are downloaded packages; `hub` a hub data set;"
        " `jsonl` a local file."
    )
    split: str | ABSENT = Field(
        default=ABSENT, description="Split of the data set; `aclsum` and `hub` need one."
    )
    path: FilePath | ABSENT = Field(
        default=ABSENT, description="Hub id or JSONL file; `hub` and `jsonl` need one."
    )
    name: str | ABSENT = Field(
        default=ABSENT, description="Configuration of the hub data set; without it, its default."
    )
    revision: str | ABSENT = Field(
        default=ABSENT, description="Commit of the hub data set; without it, the newest."
    )
    field: str | ABSENT = Field(
        default=ABSENT, description="The field that holds the text; without it, `text`."
    )
    document_field: str | ABSENT = Field(
        default=ABSENT,
        description="The field that holds the document of a pair; without it, `document`.",
    )
    summary_field: str | ABSENT = Field(
        default=ABSENT, description="The field that holds its summary; without it, `summary`."
    )
    local: FilePath | ABSENT = Field(
        default=ABSENT,
        description="JSONL under data_dir that serves instead of the hub; without it, the hub.",
    )
    stream: bool | ABSENT = Field(
        default=ABSENT,
        description="Read the hub data set row by row; without it, it is downloaded whole.",
    )
    limit: Count | ABSENT = Field(
        default=ABSENT, description="Read at most this many rows; without it, all."
    )
    documents: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | ABSENT = Field(
        default=ABSENT,
        description="[start, stop) of the documents, to keep splits of one source apart; without"
        " it, all.",
    )


class Weights(Section):
    """Where the weights come from."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [key]} for key in ("package", "hub", "folder", "random")]
        }
    )
    package: Name | ABSENT = Field(
        default=ABSENT,
        description="A package that carries the weights (see docs/data.md); one of four.",
    )
    hub: FilePath | ABSENT = Field(default=ABSENT, description="Hub id; one of four.")
    revision: str | ABSENT = Field(
        default=ABSENT, description="Commit of the hub model; without it, the newest."
    )
    trust_remote_code: bool | ABSENT = Field(
        default=ABSENT, description="Run code from the hub; without it, that is refused."
    )
    folder: FilePath | ABSENT = Field(
        default=ABSENT, description="A local transformers folder; one of four."
    )
    random: dict[str, Any] | ABSENT = Field(
        default=ABSENT,
        description="Random weights of this shape: `architecture` and fields of its configuration;"
        " one of four.",
    )
    seed: Annotated[int, Field(ge=0, le=1_000_000)] | ABSENT = Field(
        default=ABSENT, description="Of random weights; without it, 0."
    )


class Shape(Section):
    """Sizes of a model."""

    num_heads: Count = Field(description="Query heads.")
    num_kv_heads: Count = Field(description="Key/value heads.")
    head_dim: Count = Field(description="Size of a head.")
    parameters: float = Field(gt=0, description="All weights of the model.")


class Model(Section):
    """A model."""

    weights: Weights = Field(description="Where the weights come from.")
    num_layers: Count = Field(
        description="Attention layers, needed to plan the jobs; checked against the weights."
    )
    context: int = Field(
        ge=16,
        description="Tokens that sparsities are fractions of; windows of text have this length.",
    )
    dtype: Dtype = Field(
        default="float32", description="Of the model's weights and forward passes."
    )
    shape: Shape | None = Field(
        default=None,
        description="Sizes that expectations of disk and GPU time are made from, before any weights"
        " are there; null gives none.",
    )
    memory_mb: int = Field(
        default=4000, ge=100, description="Memory a job needs that loads this model."
    )
    paper: Literal["llama2_7b", "llama2_13b", "falcon_7b", None] = Field(
        default=None,
        description="Which of the paper's models this is; its numbers then stand beside the"
        " paper's.",
    )


class Kernel(Section):
    """The sizes of a feature map."""

    kernel_size: int = Field(
        default=8,
        ge=2,
        multiple_of=2,
        description="R, features a token; the state costs R/2 tokens of cache.",
    )
    hidden_size: Count = Field(default=512, description="R', width of the kernels' MLPs.")
    dropout: float = Field(
        default=0.3, ge=0, lt=1, description="After the first linear map, in training."
    )


class Recipe(Section):
    """Optimisation; the defaults are the paper's."""

    epochs: Count = Field(default=40, description="Passes over the training split.")
    batch_size: Count = Field(default=2, description="Sequences a step.")
    learning_rate: float = Field(default=0.001, gt=0, description="Of Adam at the start.")
    halve_every: Count = Field(
        default=10, description="Epochs after which the learning rate is halved."
    )
    beta2: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="Adam's decay of squared gradients; in short trainings 0.95 learns faster.",
    )
    query_stride: Count = Field(
        default=1,
        description="A step looks at every so many-th query of its sequences, from a random one on"
        " (every key stays in the state). 1 is all of them; 8 halves the time of a step on a CPU"
        " and costs a few percent of loss (docs/performance.md).",
    )
    validation: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the sequences held out."
    )


class Train(Section):
    """How kernels are trained."""

    dataset: Name = Field(description="Name of the data set the features come from.")
    sequences: int = Field(ge=2, description="Windows of `context` tokens, one a document.")
    pack: bool = Field(
        default=False,
        description="Join short documents until they fill a window, instead of leaving them out.",
    )
    kernel: Kernel = Field(default=Kernel(), description="The feature map and its sizes.")
    recipe: Recipe = Field(
        default=Recipe(), description="Optimisation; the defaults are the paper's."
    )
    on_harm: Literal["sparse", "keep", "stop"] = Field(
        default="sparse",
        description="What becomes of a layer whose training diverges or does not beat the sparse"
        " policy on the sequences held out. `sparse`: its kernel is silenced, so that it is the"
        " sparse policy exactly; `keep`: the best epoch's kernel is kept all the same; `stop`: the"
        " job fails. The training table names such layers.",
    )
    compute_dtype: Dtype = Field(
        default="float32",
        description="Of the matrix products in training; weights, features and losses stay"
        " float32.",
    )
    layers_per_job: Count = Field(
        default=1,
        description="Layers one training job trains one after the other, so that start-up does not"
        " dominate small models.",
    )
    memory_mb: int = Field(default=4000, ge=100, description="Memory a training job needs.")


class Dump(Section):
    """How attention features reach the disk."""

    layers_per_job: Count = Field(
        default=1000, description="Layers whose features one forward run writes."
    )
    disk_gib: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Features on disk at any time; bundles of layers are dumped, trained and"
        " deleted in turn. Needs `keep: false` and the models' `shape`; null sets no bound.",
    )
    keep: bool = Field(
        default=True,
        description="Keep features after training (a new layer or policy then costs one job) or"
        " delete them.",
    )


LIST = TypeAdapter(Sparsities).json_schema()
LIST_OR_LISTS = WithJsonSchema(
    {
        "type": ["array", "object"],
        "if": {"type": "object"},
        "then": {"minProperties": 1, "additionalProperties": LIST},
        "else": LIST,
    }
)


class Grid(Section):
    """The grid, expanded in full for every model."""

    scores: Literal["cached", "full"] = Field(
        default="cached",
        description="Attention probabilities that policies look at, over the cached keys or the"
        " full row.",
    )
    policies: Names = Field(description="Sparse policies by name.")
    train_sparsities: Annotated[list[float] | dict[str, list[float]], LIST_OR_LISTS] = Field(
        description="Sparsities that kernels are trained at; a list, or a list for each policy."
    )
    test_sparsities: Sparsities
    methods: Names = Field(
        default=["baseline", "baseline_plus", "performer", "less"],
        description="What is compared with the full cache; less is evaluated for every train"
        " sparsity.",
    )


class Windows(Section):
    """Windows of text that something is measured on."""

    dataset: Name = Field(description="Name of the data set.")
    windows: Count = Field(description="Windows to measure on.")
    pack: bool = Field(default=False, description="Join short documents until they fill a window.")


class Maps(Section):
    """Attention maps of chosen heads."""

    dataset: Name = Field(description="Name of the data set.")
    windows: Count = Field(
        description="Windows that are cut; the first is shown, so use another task's number to"
        " share them."
    )
    pack: bool = Field(default=False, description="Join short documents until they fill a window.")
    sparsity: float = Field(description="One that the policies' kernels are trained at.")
    policies: Words = Field(description="Of the grid's.")
    heads: Annotated[
        list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]],
        Field(min_length=1, json_schema_extra=UNIQUE),
    ] = Field(description="[layer, head], counted from 0.")


class KernelSizes(Section):
    """The study of kernel sizes."""

    task: Name = Field(description="Name of a task of the experiment.")
    policy: Name = Field(description="One of the grid's.")
    sparsity: float = Field(description="One that the policy's kernels are trained at.")
    sizes: Annotated[
        list[Annotated[int, Field(ge=2, multiple_of=2)]],
        Field(min_length=1, json_schema_extra=UNIQUE),
    ] = Field(description="R; the grid's own need not be among them.")


class PromptLengths(Section):
    """The study of prompt lengths."""

    task: Name = Field(description="Name of a task of summaries.")
    policy: Name = Field(description="One of the grid's.")
    sparsity: float = Field(
        gt=0,
        lt=1,
        description="The budget as a fraction of the context; kernels are trained at it.",
    )
    lengths: Annotated[
        list[Annotated[int, Field(ge=16)]], Field(min_length=1, json_schema_extra=UNIQUE)
    ] = Field(description="Tokens of the prompts.")
    samples: int = Field(
        ge=2, description="Documents; those too short for the longest prompt are passed over."
    )


class OtherScores(Section):
    """The study of scores."""

    task: Name = Field(description="Name of a task that is not summaries.")
    policies: Words = Field(description="Of the grid's.")
    sparsities: Sparsities = Field(description="Ones that those policies' kernels are trained at.")


class Ablations(Section):
    """Studies beside the grid."""

    kernel_sizes: KernelSizes | None = Field(
        default=None,
        description="Score against kernel size R at equal memory: the budget shrinks by what a"
        " larger state takes, so that the grid's own R is the cell of the grid (paper, Figure 7).",
    )
    prompt_lengths: PromptLengths | None = Field(
        default=None,
        description="Summaries of the same documents cut to prompts of several lengths, without"
        " demonstrations, the budget held (paper, Figure 8).",
    )
    scores: OtherScores | None = Field(
        default=None,
        description="A task under the scores that the grid does not use (`full` or `cached`).",
    )


class LatencySetting(Section):
    """A row of the latency study."""

    prompt: int = Field(ge=2, description="Tokens of each prompt.")
    new_tokens: int = Field(ge=2, description="Tokens it is continued by.")
    batch: Count = Field(description="Prompts continued together.")
    policies: Words | ABSENT = Field(
        default=ABSENT, description="Of the grid's; without it, those of the study."
    )


class Latency(Section):
    """The latency study."""

    settings: Annotated[list[LatencySetting], Field(min_length=1, json_schema_extra=UNIQUE)] = (
        Field(description="Rows; each is one job, in which all methods take turns.")
    )
    policies: Words = Field(description="Of the grid's.")
    sparsities: Sparsities = Field(
        description="Fractions of the context, or of prompt and new tokens together where they are"
        " more."
    )
    methods: Names = Field(
        default=["baseline_plus", "less"], description="What is compared with the full cache."
    )
    generate: bool = Field(default=True, description="Time the library's `generate` too.")
    repetitions: Count = Field(default=3, description="Of every row.")


class Task(Section):
    """A task of any kind."""

    kind: str = Field(description="What sort of task it is, one of the kinds below.")


class PartOfGrid(Task):
    """A task that may be measured on a part of the grid."""

    policies: Words | ABSENT = Field(
        default=ABSENT,
        description="Of the grid's policies, those this task is measured under; without it, all.",
    )
    sparsities: Sparsities | ABSENT = Field(
        default=ABSENT,
        description="Of the grid's test_sparsities, those this task is measured at; without it,"
        " all.",
    )


class Perplexity(Task):
    """Teacher-forced perplexity, per token and per word, of one random window a document."""

    dataset: Name = Field(description="Name of the data set.")
    windows: int = Field(ge=2, description="Windows to measure on.")
    pack: bool = Field(default=False, description="Join short documents until they fill a window.")


class Summaries(PartOfGrid):
    """Text generated token by token under the policy, scored by ROUGE."""

    dataset: Name = Field(description="Name of a data set of documents and summaries.")
    template: Name = Field(
        description="How prompts are written; a name of pipeline/resources/prompts.yaml."
    )
    samples: int = Field(
        ge=2,
        description="Documents to summarise; those whose prompt exceeds the context less"
        " max_new_tokens are passed over.",
    )
    demonstrations: int = Field(default=0, ge=0, description="Solved examples in each prompt.")
    demonstration_dataset: Name | ABSENT = Field(
        default=ABSENT,
        description="Name of the data set they come from; without it, there are none.",
    )
    max_new_tokens: Count = Field(default=128, description="Tokens after which a summary ends.")
    temperature: float = Field(default=0.3, ge=0, description="Of sampling; 0 is greedy.")
    batch_size: Count = Field(default=1, description="Prompts continued together.")


class Harness(PartOfGrid):
    """A task of lm-evaluation-harness, teacher-forced."""

    task: Name = Field(
        description="Name of one of its tasks or of a file of pipeline/resources/tasks."
    )
    dataset: Name | ABSENT = Field(
        default=ABSENT,
        description="Name of the data set that is measured on; without it, the task's own"
        " download.",
    )
    num_fewshot: int = Field(default=0, ge=0, description="Demonstrations in each prompt.")
    fewshot_dataset: Name | ABSENT = Field(
        default=ABSENT,
        description="Name of the data set they come from, if `dataset` is given; without it, the"
        " task's own.",
    )
    limit: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Documents, the first of the data set; null takes all."
    )
    max_words: Count | None = Field(
        default=None,
        description="Words to which texts of `dataset` are cut, for perplexity of long ones; null"
        " cuts none.",
    )


class Experiment(Section):
    """One file describes one experiment; unknown keys are errors."""

    experiment: Name = Field(
        description="Name of the experiment; its results go to results/<experiment>."
    )
    description: str = Field(
        default="", max_length=2000, description="One sentence for the report."
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Seed of every random choice (samples, initial weights, bootstrap).",
    )
    scratch: FilePath = Field(
        default="scratch",
        description="Folder of intermediates (downloads, models, features, kernels, raw"
        " evaluations).",
    )
    data_dir: FilePath | None = Field(
        default=None,
        description="Folder of local JSONL data sets, used before the hub where a data set names a"
        " `local` file; null where there is none.",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="Where models and training run; with `cuda` every such job asks for one GPU.",
    )
    jobs_per_gpu: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Jobs of this project that may share a GPU where each job picks its own (not"
        " under Slurm).",
    )
    datasets: Annotated[dict[Name, Dataset], Field(min_length=1)] = Field(
        description="Texts by name."
    )
    models: Annotated[dict[Name, Model], Field(min_length=1)] = Field(description="Models by name.")
    train: Train = Field(description="How kernels are trained.")
    dump: Dump = Field(default=Dump(), description="How attention features reach the disk.")
    grid: Grid = Field(description="The grid, expanded in full for every model.")
    tasks: dict[Name, Task] = Field(
        description="What the grid is measured on, by name; with none, only the other studies are."
    )
    fidelity: Windows | None = Field(
        default=None,
        description="Hellinger distance between true and approximated attention, per layer; null"
        " leaves it out.",
    )
    maps: Maps | None = Field(
        default=None,
        description="Attention maps of chosen heads and the spectrum of what top-k selection leaves"
        " out, on one window (paper, Figures 1, 3, 9 to 11); null leaves them out.",
    )
    ablations: Ablations = Field(
        default=Ablations(),
        description="Studies beside the grid, of kernels trained at the sparsity they are measured"
        " at; null leaves one out.",
    )
    latency: Latency | None = Field(
        default=None,
        description="Latency, throughput and memory of prompts and their continuations, and the"
        " parts of a decode step (paper, Tables 6 and 8), with random tokens and untrained kernels;"
        " null leaves it out. Models of random weights are built on the device.",
    )
    bootstrap: int = Field(
        default=2000, ge=100, le=20_000, description="Resamples behind every interval."
    )

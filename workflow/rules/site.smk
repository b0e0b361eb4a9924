# What fits a run to where it is: its records, its environment, and what plugins need.

import sys

from snakemake.exceptions import CliException
from snakemake.logging import logger

from pipeline.experiment.cost import expectations
from pipeline.runtime.history import NAME
from pipeline.runtime.recorder import Recorder
from pipeline.storage.seals import discard_marked

os.environ.setdefault("LESS_KV_JOBS_PER_GPU", str(CONFIG["jobs_per_gpu"]))  # for jobs on this host
# Jobs ask for tensors in huge pages: page faults take much of a small model's forward pass
# otherwise (glibc 2.35 and later; docs/performance.md).
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


if workflow.storage_settings.default_storage_provider == "s3":
    from snakemake_storage_plugin_s3 import StorageObject

    # The plugin (0.3.6) remembers that a folder is absent, and would never see that a job made it.
    StorageObject.is_dir = lambda self: any(self.get_subkeys())


def refuse_limits_on_arrays():
    """Say so where a run would hang: the Slurm plugin (2.8) loses jobs of an array under a limit."""
    limited = workflow.resource_settings.nodes != sys.maxsize or "gpu" in workflow.global_resources
    if getattr(workflow.executor_settings, "array_jobs", None) and limited:
        raise WorkflowError(
            "job arrays know no limit on jobs or GPUs: leave out --jobs and --resources,"
            " or the arrays (--slurm-array-jobs '')."
        )


def discard_damaged():
    """Delete what the last run found damaged, so that this one makes it again."""
    for folder in (PATHS.scratch, PATHS.downloads):
        discard_marked(folder)


if workflow.is_main_process:
    for line in expectations(CONFIG):
        print(line, file=sys.stderr)
    if not workflow.output_settings.dryrun:  # a plan is made beside a run
        shown = None if workflow.output_settings.quiet else sys.stderr
        logger.addHandler(Recorder(PATHS.logs / NAME, shown, CliException, discard_damaged))


def all_cores():
    """Cores of this machine that a run may use; eight where a cluster hands them out."""
    try:
        return workflow.cores
    except WorkflowError:
        return 8


def storage_options():
    """How Snakemake finds what lies in a default storage, on the command line."""
    factory = workflow.spawned_job_args_factory
    words = [factory.get_default_storage_provider_args(), *factory.get_storage_provider_args()]
    return " ".join(filter(None, words))

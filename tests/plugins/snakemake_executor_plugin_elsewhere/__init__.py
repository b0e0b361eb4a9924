"""An executor for tests that has what a pod has: an empty folder, the code, and a storage.

As Kubernetes' executor to Snakemake, but each job is a process on this machine. Its folder is
``ELSEWHERE`` in the environment, empty when the job begins; run one job at a time.
"""

import os
import shutil
import subprocess
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=True,
    job_deploy_sources=True,
    auto_deploy_default_storage_provider=False,  # it would be installed with pip
)


class Executor(RemoteExecutor):
    def run_job(self, job):
        folder = Path(os.environ["ELSEWHERE"])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        process = subprocess.Popen(["/bin/sh", "-c", self.format_job_exec(job)], cwd=folder)
        self.report_job_submission(SubmittedJobInfo(job, aux={"process": process}))

    async def check_active_jobs(self, active_jobs):
        for info in active_jobs:
            status = info.aux["process"].poll()
            if status is None:
                yield info
            elif status == 0:
                self.report_job_success(info)
            else:
                self.report_job_error(info)

    def cancel_jobs(self, active_jobs):
        for info in active_jobs:
            info.aux["process"].terminate()

"""The runs of a sweep as jobs of a Slurm cluster, through submitit."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
from pathlib import Path

from plain56.errors import UserError

INTERRUPTED = 75  # the exit status of a command that was told to stop and has saved


class Job:
    """A command that is started again, and continues, if its time is up or other jobs take its place. It is pickled."""

    def __init__(self, command):
        self.command = command
        self.process = None

    def __call__(self):
        # Slurm announces the end by USR2, which it sends to all processes of a job; only submitit, in this one, handles it.
        self.process = subprocess.Popen(self.command, preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
        # Not `Popen.wait`: it holds a lock that `checkpoint` needs, which submitit calls from a signal handler meanwhile.
        status = os.waitstatus_to_exitcode(os.waitpid(self.process.pid, 0)[1])
        while status == INTERRUPTED:
            # Slurm told all processes to stop. It will end or requeue this job, but only if the job has not ended by itself.
            signal.pause()
        if status:
            raise RuntimeError(f"{' '.join(self.command)} ended with status {status}")

    def checkpoint(self):
        """Called by submitit before it requeues the job: makes the command save, and returns the job that continues."""
        from submitit.helpers import DelayedSubmission

        # Slurm may send the signal twice, and a command that is told twice to stop does so without saving.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has already ended
            self.process.terminate()
            os.waitpid(self.process.pid, 0)
        return DelayedSubmission(Job(self.command))


def check():
    """Raises UserError if there is no submitit or no Slurm."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--executor=slurm needs submitit; install it by: pip install 'plain56[slurm]'.")
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError("--executor=slurm finds no Slurm on this machine: there is no sbatch or no srun; use --executor=local.")


def submit(commands, folder, name, **parameters):
    """Submits one job for each command, as one array, and returns the jobs' identifiers.

    Args:
        folder: for the jobs' output, on a file system that the cluster shares.
        parameters: of submitit's `SlurmExecutor`; None leaves a choice to the cluster.

    Raises UserError as `check` does, or if Slurm refuses the jobs.
    """
    check()
    import submitit

    executor = submitit.SlurmExecutor(folder=Path(folder), max_num_timeout=1_000_000)
    executor.update_parameters(job_name=name, **{key: value for key, value in parameters.items() if value is not None})
    try:
        with executor.batch():
            jobs = [executor.submit(Job(command)) for command in commands]
    except submitit.core.utils.FailedJobError as error:
        reason = (str(error).strip() or "sbatch failed").splitlines()[-1]
        raise UserError(f"Slurm refuses the jobs: {reason}.") from error
    return [job.job_id for job in jobs]

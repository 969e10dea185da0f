"""The Jobs screen: interrupted, running, waiting and finished jobs, to be started, watched, stopped and resumed.

The job queue runs them.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.widgets import OptionList, RichLog, Static
from textual.widgets.option_list import Option

from mta_cli.errors import MtaError
from mta_cli.options import MachineOptions
from mta_cli.pipeline.maintenance import resume
from mta_cli.pipeline.maintenance.resume import UnfinishedJob, list_unfinished_jobs
from mta_cli.text.formatting import pluralise
from mta_cli.tui.dialogs.basic import ChoiceDialog
from mta_cli.tui.dialogs.job_forms import JOB_FORMS
from mta_cli.tui.screens.base import BaseScreen
from mta_cli.tui.text import block_text
from mta_cli.tui.widgets import job_row
from mta_cli.tui.widgets.charts.sparkline import LabelledSparkline
from mta_cli.tui.workers.job_queue import LOG_LINES, Job, JobUpdated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mta_cli.events import Event
    from store.registry import Registry

NO_JOBS_HELP = """No job is running, waiting or interrupted. Start one:

{starts}

f does all of it for a table of your own. Or begin with i or m; then b builds a bank, a adapts users to it, and \
e measures the result."""
ELSEWHERE_SECONDS = 3.0  # interval between two readings of other processes' jobs


class JobsScreen(BaseScreen):
    """The list of jobs, and the log of the selected one."""

    SCREEN_NAME = "jobs"
    CSS_PATH = "jobs.tcss"
    HELP = """Jobs run one after another; you can use the other screens meanwhile.
↻ interrupted; can be resumed with the options that it was started with
↗ runs in another process on this store, as `mta ps` lists it
▶ running   · waiting   ✓ done   ✗ failed   ■ stopped
Enter resumes an interrupted or stopped job, and on other jobs moves to the log.
A stopped bank build, adaptation or evaluation keeps what is finished and a checkpoint of the rest.
The curve is the loss of each training step, before the weights change; the loss in the log is measured after the last
step. The curve's height is relative; the percentage says how much the loss changed."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "New job", id="jobs.new", tooltip="Choose a job to start"),
        Binding("r", "resume", "Resume", id="jobs.resume", tooltip="Resume the interrupted job"),
        Binding(
            "x", "discard", "Discard", id="jobs.give_up", tooltip="Discard the interrupted job for good; asks first"
        ),
        Binding("s", "stop", "Stop", id="jobs.stop", tooltip="Stop the job after the current step"),
        *(
            Binding(
                start.key,
                f"start('{start.kind}')",
                start.kind.capitalize(),
                id=f"jobs.{start.kind.replace(' ', '_')}",
                tooltip=start.about,
                show=False,
            )
            for start in JOB_FORMS.values()
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._interrupted_jobs: dict[str, UnfinishedJob] = {}
        self._resumed: dict[str, Job] = {}
        self._elsewhere: dict[str, str] = {}  # the jobs of other processes, by row id
        self._look_failed = False
        self._ids: list[str] = []
        self._written_log: tuple[Job, int] | None = None  # the job, and the number of its shown log lines

    def compose_body(self) -> ComposeResult:
        """The list, the selected job, and help for an empty list."""
        with Vertical(id="jobs"):
            yield OptionList(id="list", markup=False)
            with Vertical(id="detail"):
                yield Static(id="head")
                yield LabelledSparkline("loss ", id="loss")
                yield RichLog(id="log", max_lines=LOG_LINES, min_width=20, wrap=True)
        starts = "\n".join(f"{form.key}  {kind:<12} {form.about}" for kind, form in JOB_FORMS.items())
        yield Static(block_text(NO_JOBS_HELP.format(starts=starts)), id="nothing")

    def on_mount(self) -> None:
        """Start timers that update a running job's clock and read other processes' jobs."""
        self.set_interval(1.0, self._refresh_job_header)
        self.set_interval(ELSEWHERE_SECONDS, self._refresh_other_processes)
        self.screen_layout_refresh_signal.subscribe(self.query_one("#log"), self._show_detail_after_layout)

    async def reload(self) -> None:
        """Read interrupted jobs and jobs of other processes, and show all jobs."""
        found, self._elsewhere = await self.mta_app.store_thread.run(
            lambda reg: (list_unfinished_jobs(reg), _read_jobs_of_other_processes(reg))
        )
        self._interrupted_jobs = {}
        jobs = self.mta_app.job_queue.jobs
        for one in found:
            key = _interrupted_job_key(one)
            job = self._resumed.get(key)
            if job is not None and not job.finished:
                continue
            if one.run is None and any(each.kind == one.kind and not each.finished for each in jobs):
                continue  # a job of this window resumes it; without a run it is recognised by its kind
            # An interrupted job that this window ran keeps its entry in the list.
            job = job or next((each for each in jobs if each.finished and one.run in each.run_ids), None)
            self._interrupted_jobs[_job_option_id(job) if job is not None else key] = one
        self._show_list()

    @on(JobUpdated)
    def refresh_updated_job(self, event: JobUpdated) -> None:
        """Show the changed state or progress of a job."""
        self._refresh_job(event.job)

    @on(OptionList.OptionHighlighted, "#list")
    def show_highlighted_job(self) -> None:
        """Show the job under the cursor."""
        self._show_detail()
        self.refresh_bindings()

    @on(OptionList.OptionSelected, "#list")
    def open_selected_job(self) -> None:
        """Resume the selected job if it was interrupted; otherwise focus its log."""
        if self._selected_interrupted_job is not None:
            self.action_resume()
        else:
            self.query_one("#log").focus()

    def on_resize(self, event: Resize) -> None:
        """Draw the list and the log again at the new width."""
        self._written_log = None
        if self._ids:
            self.call_after_refresh(self._show_list)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide keys that do not apply to the selected job."""
        if action in ("resume", "discard"):
            return self._selected_interrupted_job is not None
        if action == "stop":
            return self._selected_job is not None and not self._selected_job.finished
        return super().check_action(action, parameters)

    @work
    async def action_new(self) -> None:
        """Let the user choose a kind of job, and show its form."""
        kinds = (Option(f"{kind:<12} {form.about}", kind) for kind, form in JOB_FORMS.items())
        kind = await self.app.push_screen_wait(ChoiceDialog("Start a job", kinds))
        if kind is not None:
            self.action_start(kind)

    def show_queued_job(self, job: Job) -> None:
        """Select the new job in the list."""
        self._show_list(select=_job_option_id(job))
        self.query_one("#list").focus()

    @work
    async def action_stop(self) -> None:
        """Stop the selected job; asks first."""
        job = self._selected_job
        if (
            job is not None
            and not job.finished
            and await self.mta_app.confirm(f"Stop {job.kind} · {job.title}? {job.stop_note}")
        ):
            self.mta_app.job_queue.stop_job(job)
            self._refresh_job(job)
            self.refresh_bindings()

    def action_resume(self) -> None:
        """Resume the selected interrupted job."""
        one = self._selected_interrupted_job
        if one is None:
            return
        machine = self.mta_app.settings.build_options(MachineOptions)

        def make(reg: Registry) -> Iterator[Event]:
            from mta_cli.lab.evaluation.resume import resume_evaluation

            return resume.resume_job(reg, one, machine, resume_evaluation)

        job = self.mta_app.job_queue.add_job(one.kind, one.title, make, self.mta_app.notify_if_failed)
        self._resumed[_interrupted_job_key(one)] = job
        self._interrupted_jobs = {key: other for key, other in self._interrupted_jobs.items() if other is not one}
        self._show_list(select=_job_option_id(job))

    @work(exit_on_error=False)
    async def action_discard(self) -> None:
        """Discard the selected interrupted job, after asking."""
        one = self._selected_interrupted_job
        if one is None:
            return
        goes = " Everything that was trained for it is removed." if one.kind == resume.BANK_BUILD else ""
        if await self.mta_app.confirm(f"Discard {one.kind} · {one.title}?{goes} It will not be offered again."):
            try:
                await self.mta_app.store_thread.run(partial(resume.discard_job, one=one))
            finally:
                await self.reload()

    @property
    def _selected_option_id(self) -> str | None:
        found = self.query("#list")
        place = found.first(OptionList).highlighted if found else None
        return self._ids[place] if place is not None and place < len(self._ids) else None

    @property
    def _selected_interrupted_job(self) -> UnfinishedJob | None:
        return self._interrupted_jobs.get(self._selected_option_id or "")

    @property
    def _selected_job(self) -> Job | None:
        selected = self._selected_option_id
        return next((job for job in self.mta_app.job_queue.jobs if _job_option_id(job) == selected), None)

    def _show_list(self, select: str | None = None) -> None:
        shown, width = self.query_one("#list", OptionList), self._list_width
        wanted = select or self._selected_option_id
        jobs = list(reversed(self.mta_app.job_queue.jobs))
        prompts = {key: job_row.interrupted_job_list_entry(one, width) for key, one in self._interrupted_jobs.items()}
        ids = [_job_option_id(job) for job in jobs]
        prompts = {key: prompt for key, prompt in prompts.items() if key not in ids}
        prompts |= {key: job_row.job_list_entry(job, width) for key, job in zip(ids, jobs, strict=True)}
        prompts |= {key: job_row.other_process_list_entry(what, width) for key, what in self._elsewhere.items()}
        self._ids = list(prompts)
        shown.set_options(Option(prompt, key) for key, prompt in prompts.items())
        if self._ids:
            shown.highlighted = self._ids.index(wanted) if wanted in self._ids else 0
        self.query_one("#jobs").display = bool(self._ids)
        self.query_one("#nothing").display = not self._ids
        if self._ids and self.focused is None:
            shown.focus()
        self._show_detail()
        self.refresh_bindings()

    def _refresh_job(self, job: Job) -> None:
        if _job_option_id(job) not in self._ids:
            self._show_list()
            return
        shown = self.query_one("#list", OptionList)
        shown.replace_option_prompt(_job_option_id(job), job_row.job_list_entry(job, self._list_width))
        if job is self._selected_job:
            self._show_detail()
            self.refresh_bindings()

    def _show_detail(self) -> None:
        job, one, log = self._selected_job, self._selected_interrupted_job, self.query_one("#log", RichLog)
        self.query_one(LabelledSparkline).show_values(job.progress.losses if job is not None else ())
        if job is None:
            what = self._elsewhere.get(self._selected_option_id or "")
            head = job_row.interrupted_job_header(one) if one is not None else job_row.other_process_header(what or "")
            self.query_one("#head", Static).update(head)
            self._written_log = None
            log.clear()
            return
        width = self.query_one("#head").content_size.width or 78
        self.query_one("#head", Static).update(
            job_row.job_header(job, width, time.time(), resumable=self._selected_interrupted_job is not None)
        )
        if (
            not log.content_size.width
        ):  # without a width lines cannot be wrapped: `_show_detail_after_layout` tries again
            return
        written = self._written_log[1] if self._written_log is not None and self._written_log[0] is job else 0
        missing = job.logged_lines - written
        if not written or missing > len(job.log):
            log.clear()
        fresh = job.log[-missing:] if missing else []
        follow = not written or log.is_vertical_scroll_end  # do not scroll a log that was scrolled back
        for text in fresh:
            log.write(block_text(text), expand=True, scroll_end=False)
        if follow and fresh:
            self.call_after_refresh(log.scroll_end, animate=False)
        self._written_log = job, job.logged_lines

    def _show_detail_after_layout(self, _: object) -> None:
        if self._selected_job is not None and (
            self._written_log is None or self._written_log[0] is not self._selected_job
        ):
            self._show_detail()

    def _refresh_job_header(self) -> None:
        job = self._selected_job
        if job is not None and job.state == "running" and self.is_current:
            width = self.query_one("#head").content_size.width or 78
            self.query_one("#head", Static).update(job_row.job_header(job, width, time.time()))

    @work(group="elsewhere", exclusive=True, exit_on_error=False)
    async def _refresh_other_processes(self) -> None:
        """Read the jobs of other processes; if one has begun or ended, reload, because the store has changed."""
        if not self.is_current:
            return
        try:
            found = await self.mta_app.store_thread.run(_read_jobs_of_other_processes)
        except MtaError:
            if not self._look_failed:
                self._look_failed = True
                self.reload_if_current()  # the reload shows the error once
            return
        self._look_failed = False
        if found != self._elsewhere:
            self.mta_app.store_changes += 1
            self.reload_if_current()

    @property
    def _list_width(self) -> int:
        return max(20, (self.query_one("#list").content_size.width or 78) - 2)


def _read_jobs_of_other_processes(reg: Registry) -> dict[str, str]:
    jobs = reg.jobs.running_jobs(elsewhere=True)
    return {f"elsewhere {n}": f"{title}, {pluralise(users, 'user')}" for n, (title, users) in enumerate(jobs)}


def _interrupted_job_key(one: UnfinishedJob) -> str:
    return f"{one.kind} {one.number} {one.run}"


def _job_option_id(job: Job) -> str:
    return f"job {job.number}"

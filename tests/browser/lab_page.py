"""What a test does in JupyterLab, as a person would: open a notebook, run its cells, look, move a control."""

from pathlib import Path

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
WAIT_SECONDS = 180  # much more than a quiet machine needs: others may be computing on it
IDLE = "Python 3 (ipykernel) | Idle"  # as the status bar says it
# JupyterLab shows an error as it shows stderr; a chapter writes neither
ERRORS = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
# Every cell that has code has its number, or one has failed and nothing waits any more.
DONE = """errors => {
  const cells = [...document.querySelectorAll('.jp-CodeCell')];
  const filled = cells.filter(cell => cell.querySelector('.cm-content').innerText.trim());
  const prompts = filled.map(cell => cell.querySelector('.jp-InputPrompt').innerText);
  const failed = document.querySelector(errors);
  return !prompts.some(text => text.includes('*')) && (failed || prompts.every(text => /\\d/.test(text)));
}"""


class LabPage:
    """A browser page on a running JupyterLab; `server` holds its url and token."""

    def __init__(self, page, server):
        self.page, self.server = page, server
        page.set_default_timeout(WAIT_SECONDS * 1000)

    def open(self, notebook):
        """Open a notebook, named from the root folder, and wait until its kernel is ready."""
        self.page.goto(f"{self.server['url']}lab/tree/{notebook}?reset&token={self.server['token']}")
        self.wait_idle()

    def wait_idle(self, seconds=WAIT_SECONDS):
        """Wait until the kernel has nothing to do."""
        self.page.locator("#jp-main-statusbar").get_by_text(IDLE).wait_for(timeout=seconds * 1000)

    def run_all(self, seconds=600):
        """Run all cells from the menu and wait until the last is done, or one has failed."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(DONE, arg=ERRORS, timeout=seconds * 1000)
        self.wait_idle()

    def errors(self):
        """The text of each error, and of whatever else was written to stderr."""
        return self.page.locator(ERRORS).all_inner_texts()

    def run_chapter(self, notebook, seconds=900):
        """Open a chapter and run all its cells, without an error; each figure is wide, and kept as a screenshot."""
        self.open(notebook)
        self.run_all(seconds)
        assert not (errors := self.errors()), errors
        for number, figure in enumerate(self.outputs("image/png").all()):
            assert figure.locator("img").evaluate("img => img.naturalWidth") > 600
            self.screenshot(f"{notebook[:2]}-figure-{number}", figure)

    def outputs(self, kind=None):
        """All outputs, or those of one MIME type, such as image/png."""
        return self.page.locator(f".jp-OutputArea-output{f'[data-mime-type={kind!r}]' if kind else ''}")

    def control(self, description):
        """The widget that has this description beside it."""
        return self.page.locator(f'.widget-inline-hbox:has(> .widget-label:text-is("{description}"))')

    def picture_of(self, description):
        """The picture in the cell of the widget that has this description."""
        cell = self.page.locator(".jp-CodeCell").filter(has=self.control(description))
        return cell.locator(".jp-OutputArea-output[data-mime-type='image/png'] img")

    def move(self, description, to):
        """Set a widget: a slider by a number of steps to the right (negative: left), a choice by its text."""
        widget = self.control(description)
        handle = widget.locator(".noUi-handle")
        if handle.count():
            handle.focus()
            for _ in range(abs(to)):
                handle.press("ArrowRight" if to > 0 else "ArrowLeft")
        else:
            widget.locator("select").select_option(label=to)
        self.wait_idle()

    def screenshot(self, name, at=None):
        """Save what is seen as build/screenshots/NAME.png, after scrolling to the element `at`."""
        if at is not None:
            at.scroll_into_view_if_needed()
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def redrawn(self, picture, before):
        """The source of a picture (a locator) once it is not `before` and stays: sliders draw what they pass."""
        last = before
        for _ in range(60):
            self.page.wait_for_timeout(500)
            now = picture.get_attribute("src")
            if now == last != before:
                return now
            last = now
        raise AssertionError("the picture did not change within 30 seconds")

    def redrawn_by(self, picture, moves):
        """Move controls, given as (description, to), and wait after each until the picture has changed."""
        for description, to in moves:
            before = picture.get_attribute("src")
            self.move(description, to)
            self.redrawn(picture, before)

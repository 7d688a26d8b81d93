"""report.html from report.json."""

import json

from orchestrator.rundir import RunDir, whole_file


def render_report(rundir: RunDir) -> None:
    """Write report.html."""
    with whole_file(rundir.report_html) as aside:
        aside.write_text("<pre>" + json.dumps(json.loads(rundir.report_json.read_text()), indent=1) + "</pre>")

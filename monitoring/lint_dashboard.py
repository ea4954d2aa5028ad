#!/usr/bin/env python3
"""Checks dashboards without a Grafana.

monitoring/lint_dashboard.py [FILE...]      default: the dashboards of the chart

Every panel has a title, a description and a unit. Every query uses the data source variable, selects namespace and
cluster, uses counters only in a rate over $__rate_interval, and parses (promtool). Panels neither overlap nor share an
id. The links of the alerts name a dashboard that exists.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
DASHBOARDS = HERE.parent / "charts/covey/files/dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
METRIC = re.compile(r"\b((?:mqtt_(?:broker|operator)|process)_\w+|ALERTS|up)\b(\{[^}]*\})?")
VALUES = {"namespace": "ns", "cluster": "c", "__rate_interval": "1m"}


def dashboards(files):
    for file in [pathlib.Path(name) for name in files] or sorted(DASHBOARDS.glob("*.json")):
        yield file, json.loads(file.read_text())


def panels(of):
    """Yields all panels except rows, including those in collapsed rows."""
    for panel in of.get("panels", []):
        yield from panels(panel)
        if panel["type"] != "row":
            yield panel


def filled(expr):
    """Returns the query with the variables replaced, as Grafana does."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: VALUES[found[1]], expr)


def query_faults(expr):
    for name, matchers in METRIC.findall(expr):
        for variable, label in (("namespace", "namespace"), ("cluster", "mqtt_cluster")):
            if not re.search(rf'{label}=~?"\${variable}\|?"', matchers):
                yield f"{name} does not name {label}"
        if name.startswith("process_") and 'job="mqtt-broker"' not in matchers:
            yield f"{name} does not name the job"
        if name.endswith(("_total", "_bucket")) and not re.search(rf"(rate|increase)\({name}\b", expr):
            yield f"the counter {name} is not under a rate"
    for function, window in re.findall(r"\b(i?rate)\([^\[]*\[([^\]]*)\]", expr):
        if window != "$__rate_interval":
            yield f"{function} over {window} instead of $__rate_interval"
    unknown = set(re.findall(r"\$\{?(\w+)", expr)) - VALUES.keys()
    if unknown:
        yield f"unknown variables {sorted(unknown)}"


def panel_faults(panel):
    for field in ("title", "description"):
        if not panel.get(field, "").strip():
            yield f"no {field}"
    if not panel["fieldConfig"]["defaults"].get("unit"):
        yield "no unit"
    if panel.get("datasource") != DATASOURCE:
        yield "another data source than the variable"
    if not panel.get("targets"):
        yield "no query"
    for target in panel.get("targets", []):
        if target.get("datasource") != DATASOURCE:
            yield f"query {target['refId']} has another data source than the variable"
        yield from query_faults(target["expr"])


def layout_faults(dashboard):
    taken, ids, titles = {}, set(), set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        if grid["x"] + grid["w"] > 24:
            yield f"{panel['title']}: wider than the page"
        for cell in ((x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])):
            if cell in taken:
                yield f"{panel['title']} overlaps {taken[cell]}"
                break
            taken[cell] = panel["title"]
        if panel["id"] in ids or panel["title"] in titles:
            yield f"{panel['title']}: id or title is taken"
        ids.add(panel["id"])
        titles.add(panel["title"])


def template_faults(dashboard):
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if variables.get("datasource", {}).get("query") != "prometheus":
        yield "no variable for the data source"
    for name in ("namespace", "cluster"):
        if variables.get(name, {}).get("datasource") != DATASOURCE:
            yield f"no variable {name} of the data source variable"
    for annotation in dashboard["annotations"]["list"]:
        if annotation["datasource"] != DATASOURCE:
            yield f"annotation {annotation['name']} has another data source than the variable"


def syntax_faults(dashboard):
    queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    rules = [{"record": f"q{number}", "expr": filled(expr)} for number, expr in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        json.dump({"groups": [{"name": "queries", "rules": rules}]}, file)
        file.flush()
        result = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        yield result.stdout + result.stderr


def faults(files):
    uids = set()
    for file, dashboard in dashboards(files):
        uids.add(dashboard["uid"])
        found = [f"{panel.get('title')}: {fault}" for panel in panels(dashboard) for fault in panel_faults(panel)]
        found += [*layout_faults(dashboard), *template_faults(dashboard)]
        # promtool's errors about queries with unknown variables would only repeat the faults found above.
        found += [] if found else syntax_faults(dashboard)
        yield from (f"{file.name}: {fault}" for fault in found)
    for uid in set(re.findall(r"/d/([\w-]+)", (HERE / "rules.yml").read_text())) - uids:
        yield f"rules.yml links to dashboard {uid}, which does not exist"


if __name__ == "__main__":
    sys.exit("\n".join(faults(sys.argv[1:])) or 0)

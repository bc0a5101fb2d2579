#!/usr/bin/env python3
"""Writes dashboard.json: `python3 grafana/dashboard.py`. Change this, not the JSON; a test compares them.

An expression is written here once and is in the JSON forty times, and a panel that takes forty lines there takes three here.
"""

import itertools
import json
from pathlib import Path

# A pod, wherever its series come from.
POD = "job, namespace, instance"
# What the variables at the top of the dashboard choose.
CHOSEN = 'namespace=~"$namespace", queue=~"$queue"'
CHOSEN_JOBS = CHOSEN + ', job_type=~"$job_type"'


def series(metric, *labels, chosen=CHOSEN):
    return f"leasehold_{metric}{{{', '.join([chosen, *labels])}}}"


def of_jobs(metric, *labels):
    return series(metric, *labels, chosen=CHOSEN_JOBS)


def by_pod(series, time):
    """What each pod counted in a time, true also for one that lived seconds; README.md explains it."""
    return f"last_over_time({series}[{time}]) - (last_over_time({series}[1h] offset {time}) or last_over_time({series}[{time}]) * 0)"


def counted(series, time="$__range", by=""):
    return f"sum{f' by ({by})' if by else ''} ({by_pod(series, time)})"


def each(series, by=""):
    """The same for each bar of a panel over time."""
    return counted(series, "$__interval", by)


def or_0(expression):
    return f"{expression} or vector(0)"


def quantile(q, buckets):
    return f"histogram_quantile({q}, {buckets})"


def finished(time, seconds):
    return f"last_over_time({series('run_finished_timestamp_seconds')}[{time}]) > time() - {seconds}"


def found_nothing(time, seconds):
    received = f"last_over_time({series('messages_received_total')}[{time}])"
    return f"count(({finished(time, seconds)}) and on ({POD}) {received} == 0)"


def alive(series_of_pods):
    """Of pods that have not finished and pushed lately. Pods that are scraped push never."""
    silent = f"time() - push_time_seconds > on ({POD}) 4 * {series('push_interval_seconds')} + 120"
    return f"{series_of_pods} unless on ({POD}) {series('run_finished_timestamp_seconds')} unless on ({POD}) ({silent})"


# Pods that pushed last in the chosen time, did not say that they finished, and are silent.
DIED = (
    f"last_over_time({series('run_started_timestamp_seconds')}[$__range])"
    f" unless on ({POD}) last_over_time({series('run_finished_timestamp_seconds')}[$__range])"
    f" and on ({POD}) ((last_over_time(push_time_seconds[$__range]) > time() - $__range_s)"
    f" < on ({POD}) time() - 120 - 4 * last_over_time({series('push_interval_seconds')}[$__range]))"
)


def cloudwatch(metric, statistics="average|maximum|sum", queues=".+"):
    """By the names of the two exporters that there are: YACE's label is dimension_QueueName, the official one's queue_name."""

    def named(label):
        name = f"aws_sqs_{metric}_({statistics})"
        return f'label_replace({{__name__=~"{name}", {label}=~"{queues}"}}, "queue", "$1", "{label}", "(.+)")'

    return f"{named('queue_name')} or {named('dimension_QueueName')}"


def of_ours(series_of_queues):
    """Of queues that pods asked within a day: CloudWatch knows everybody's, and the dead-letter queues."""
    return f"({series_of_queues}) and on (queue) last_over_time({series('build_info')}[1d])"


# KEDA names a trigger after its queue, with a dash for the dot of `.fifo`.
KEDA = (
    'label_replace(label_replace(keda_scaler_metrics_value{type="scaledjob", metric=~"s[0-9]+-aws-sqs-(${queue:pipe})"},'
    ' "queue", "$1", "metric", "s[0-9]+-aws-sqs-(.+)"), "queue", "$1.fifo", "metric", "s[0-9]+-aws-sqs-(.+)-fifo")'
)
WAITING = f"max by (queue) ({KEDA} or {of_ours(cloudwatch('approximate_number_of_messages_visible'))})"

# Pods of Jobs that KEDA made.
OF_SCALED_JOBS = (
    'kube_pod_owner{owner_kind="Job", namespace=~"$namespace"} and on (namespace, owner_name)'
    ' label_replace(kube_job_owner{owner_kind="ScaledJob"}, "owner_name", "$1", "job_name", "(.+)")'
)

PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
# The rows with their panels, and where the next panel goes, on a grid of 24 columns.
rows = []
place = {"x": 0, "y": 0, "h": 0}
ids = itertools.count(1)
# Grafana asks Prometheus nothing for a collapsed row, and opens it at a click.
OPEN_ROWS = 2


def row(title, height):
    y = place["y"] + place["h"]
    if len(rows) > OPEN_ROWS:
        # The row before is collapsed: the next one follows its heading.
        y = rows[-1]["gridPos"]["y"] + 1
    rows.append({"id": next(ids), "type": "row", "title": title, "collapsed": len(rows) >= OPEN_ROWS, "panels": [],
                 "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
    place.update(x=0, y=y + 1, h=height)


def line(height):
    """Another line of panels in the same row."""
    place.update(x=0, y=place["y"] + place["h"], h=height)


def panel(kind, width, title, description, queries, *, defaults, overrides=(), options, **more):
    rows[-1]["panels"].append({
        "id": next(ids), "type": kind, "title": title, "description": description, "datasource": PROMETHEUS,
        "gridPos": {"x": place["x"], "y": place["y"], "w": width, "h": place["h"]},
        "targets": [{"refId": chr(ord("A") + n), "datasource": PROMETHEUS, **query} for n, query in enumerate(queries)],
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": options, **more,
    })
    place["x"] += width


def thresholds(*steps):
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


PLAIN = thresholds(("text", None))
NONE = thresholds(("green", None), ("red", 1))
FEW = thresholds(("green", None), ("orange", 1))
LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def override(matcher, name, **properties):
    return {"matcher": {"id": matcher, "options": name}, "properties": [{"id": id, "value": value} for id, value in properties.items()]}


def colours(names):
    return [override("byName", name, color={"mode": "fixed", "fixedColor": colour}) for name, colour in names.items()]


OUTCOMES = colours({
    "succeeded": "green", "ignored": "#888888", "test_event": "#aaaaaa", "objects_gone": "#666666", "stopped": "blue",
    "command_failed": "red", "handler_failed": "red", "panicked": "red", "permanent": "dark-red", "temporary": "yellow", "timed_out": "orange", "stalled": "dark-orange",
    "out_of_memory": "semi-dark-red", "died": "dark-yellow",
    "lease_lost": "purple", "lost_after_success": "dark-purple",
})


def numbers(width, title, description, *values):
    """Numbers below each other: (name, expression, unit, thresholds) each."""
    panel("stat", width, title, description,
          [{"expr": expr, "legendFormat": name, "instant": True} for name, expr, _, _ in values],
          # A quantile of nothing is not a number.
          defaults={"noValue": "-", "mappings": [{"type": "special", "options": {"match": "nan", "result": {"text": "-"}}}]},
          overrides=[override("byFrameRefID", chr(ord("A") + n), unit=unit, thresholds=steps) for n, (_, _, unit, steps) in enumerate(values)],
          options={"reduceOptions": LAST, "orientation": "horizontal", "textMode": "value_and_name", "colorMode": "value", "graphMode": "none"})


def over_time(width, title, description, queries, custom, calcs, every, unit, overrides):
    panel("timeseries", width, title, description,
          [{"expr": expr, "legendFormat": name, "range": True, "interval": every} for name, expr in queries],
          defaults={"unit": unit, "min": 0, "custom": custom}, overrides=overrides,
          options={"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": calcs},
                   "tooltip": {"mode": "multi", "sort": "desc"}},
          # A bar stands for one interval, and the next one's begins where it ends.
          interval=every)


def bars(width, title, description, *queries, every="2m", unit="short", overrides=(), stacked=True):
    custom = {"drawStyle": "bars", "barAlignment": -1, "fillOpacity": 80, "lineWidth": 0,
              "stacking": {"mode": "normal" if stacked else "none", "group": "A"}}
    over_time(width, title, description, queries, custom, ["sum"], every, unit, overrides)


def lines(width, title, description, *queries, every="1m", unit="short", calcs=("lastNotNull", "max")):
    custom = {"drawStyle": "line", "fillOpacity": 10, "lineWidth": 1, "showPoints": "auto"}
    over_time(width, title, description, queries, custom, list(calcs), every, unit, ())


def ranking(width, title, description, name, expr, unit="short", colour="blue"):
    panel("bargauge", width, title, description, [{"expr": expr, "legendFormat": name, "instant": True}],
          defaults={"unit": unit, "min": 0, "thresholds": thresholds((colour, None)), "color": {"mode": "thresholds"}},
          options={"reduceOptions": LAST, "orientation": "horizontal", "displayMode": "basic", "valueMode": "color", "showUnfilled": True})


def table(width, title, description, *columns, without=()):
    """Columns of (name, expression, unit), joined by their labels; sorted by the first."""
    value = "Value" if len(columns) == 1 else "Value #{}"
    names = {value.format(chr(ord("A") + n)): name for n, (name, _, _) in enumerate(columns)}
    panel("table", width, title, description,
          [{"expr": expr, "instant": True, "format": "table"} for _, expr, _ in columns],
          defaults={}, overrides=[override("byName", name, unit=unit) for name, _, unit in columns],
          options={"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": columns[0][0], "desc": True}]},
          transformations=[{"id": "merge", "options": {}}, {"id": "organize", "options": {
              "excludeByName": {name: True for name in ("Time", "__name__", "job", *without)}, "renameByName": names}}])


row("Now", 6)
numbers(
    6, "Is work being done?",
    "Pods that hold a message now; then, in the chosen time, pods, messages, and pods that exited because the queue was empty. "
    "Bad: nothing at work while messages wait: see the row 'Platform': does KEDA create Jobs, do their pods start? If most pods find "
    'no message, KEDA creates too many: set strategy accurate, scaleOnInFlight "false" and pendingPodConditions, as in deploy/.',
    ("at work now", or_0(f"sum({alive(series('messages_in_flight'))})"), "short", PLAIN),
    ("pods launched", or_0(counted(series("jobs_launched_total"))), "short", PLAIN),
    ("messages received", or_0(counted(series("messages_received_total"))), "short", PLAIN),
    ("pods found no message", or_0(found_nothing("$__range", "$__range_s")), "short", PLAIN),
)
numbers(
    6, "Is it succeeding?",
    "Messages in the chosen time. A message that failed was kept because of an error; a stop is not a failure. Bad: see the row "
    "'Why it fails' for the reason, then search the log for outcome=REASON: its records have the reason that the command gave.",
    ("succeeded", or_0(counted(of_jobs("messages_processed_total", 'outcome="succeeded"'))), "short", PLAIN),
    ("failed", or_0(counted(of_jobs("failures_total"))), "short", FEW),
    ("share that failed",
     f"({or_0(counted(of_jobs('failures_total')))}) / ({counted(of_jobs('messages_processed_total'))} > 0)",
     "percentunit", thresholds(("green", None), ("orange", 0.05), ("red", 0.2))),
    ("stopped", or_0(counted(of_jobs("messages_processed_total", 'outcome="stopped"'))), "short", PLAIN),
)
numbers(
    6, "Is it keeping up?",
    "Messages that wait, as KEDA or CloudWatch counts them (a dash if neither is scraped); the time within which 95 % of new messages "
    "were received; and messages that were received again. Bad: many: raise the ScaledJob's maxReplicaCount, or find out in the row "
    "'Platform' why pods do not start.",
    ("waiting now", f"sum({WAITING})", "short", PLAIN),
    ("95 % received within", quantile(0.95, counted(series("first_receive_lag_seconds_bucket"), by="le")), "s",
     thresholds(("green", None), ("orange", 300), ("red", 3600))),
    ("received again", or_0(counted(series("message_retries_total"))), "short", PLAIN),
)
numbers(
    6, "Is anything lost or stuck?",
    "Bad: anything above 0 but the last. Leases lost: see the row 'Leases'. Last attempts failed: these messages are dead letters "
    "at their next receive; see the row 'Receive counts'. Pods that died silently sent no final report (out of memory, node "
    "lost): see the row 'Pods'. A pod that is at work for longer than the command ever takes is stuck: that row shows its progress.",
    ("leases lost", or_0(counted(series("leases_lost_total"))), "short", NONE),
    ("last attempts failed", or_0(counted(of_jobs("failures_total", 'final_attempt="true"'))), "short", NONE),
    ("pods died silently", or_0(f"count({DIED})"), "short", NONE),
    ("longest at work", f"max(time() - ({alive(series('run_started_timestamp_seconds'))}))", "s", PLAIN),
)
line(9)
bars(
    16, "Outcomes of the messages",
    "All messages that were settled. Bad: any colour but green that persists; single retries are normal. leasehold's "
    "docs/troubleshooting.md lists the outcomes.",
    ("{{outcome}}", each(of_jobs("messages_processed_total"), "outcome")), overrides=OUTCOMES,
)
lines(
    8, "At work, and waiting",
    "Pods that hold a message, and messages that wait. Bad: more and more wait while those at work stay at the ScaledJob's "
    "maxReplicaCount (raise it), or while none are at work (see the row 'Platform').",
    ("at work", f"sum({alive(series('messages_in_flight'))})"), ("waiting in {{queue}}", WAITING),
)

row("Outcomes over time", 8)
bars(
    8, "Pods and their receives",
    "Pods that were launched, messages that they received, pods that found no message, and receive requests that returned none. Bad: many pods that found no message: each "
    "is a needless Job. See what KEDA counts (row 'Platform') and its settings in deploy/.",
    ("launched", each(series("jobs_launched_total"))), ("messages", each(series("messages_received_total"))),
    ("found no message", found_nothing("$__interval", "$__interval_ms / 1000")),
    ("empty requests", each(series("empty_receives_total"))), stacked=False,
)
by = "namespace, queue, job_type"
table(
    8, "By queue and job type", "The chosen time. Bad: a job type that fails more than the others: choose it alone at the top.",
    ("failed", counted(of_jobs("failures_total"), by=by), "short"),
    ("succeeded", counted(of_jobs("messages_processed_total", 'outcome="succeeded"'), by=by), "short"),
    ("stopped", counted(of_jobs("messages_processed_total", 'outcome="stopped"'), by=by), "short"),
    ("time lost", counted(of_jobs("work_discarded_seconds_total"), by=by), "s"),
)
bars(
    8, "Per day",
    "From the recording rules, so that months load quickly; empty without rules.yml. Bad: a day unlike the others.",
    ("{{outcome}}", f"sum by (outcome) (sum_over_time(leasehold:messages_processed:increase1m{{{CHOSEN_JOBS}}}[1d]))"),
    every="1d", overrides=OUTCOMES,
)

row("Why it fails", 8)
bars(
    9, "Failures by reason",
    "Bad: a reason that persists. command_failed, handler_failed, panicked, permanent, temporary, timed_out, stalled, out_of_memory: the command; read its lines in the log, or the attempt records "
    "(--attempts). died: a killed pod, with --attempts. fetch_failed, unreadable: S3, or the object. delete_failed, publish_failed, lease_lost: AWS or the network; "
    "see the errors beside. not_a_notification: another sender uses this queue.",
    ("{{reason}}", each(of_jobs("failures_total"), "reason")), overrides=OUTCOMES,
)
ranking(
    5, "Reasons", "The same for the whole chosen time. Bad: the longest bar: begin with it.",
    "{{reason}}", f"sort_desc({counted(of_jobs('failures_total'), by='reason')})", colour="red",
)
ranking(
    5, "Exit codes of the pods",
    "Pods that ended in the chosen time. Bad: 78: a setting is wrong or the queue does not exist, and every pod will fail until this is "
    "corrected. 69: SQS cannot be reached. 70: a bug in leasehold. 143: stopped. leasehold's README lists all of them.",
    "exit {{code}}",
    f'count_values("code", last_over_time({series("run_exit_code")}[$__range]) and on ({POD}) {finished("$__range", "$__range_s")})',
)
bars(
    5, "Requests to SQS that failed",
    "Nearly all are retried. Bad: more than a few: throttling, a network policy, expired credentials; the log has the error.",
    ("receive", each(series("receive_errors_total"))),
    ("extend", each(series("visibility_extensions_total", 'result="failed"'))),
    ("delete", each(series("deletes_total", 'result=~"failed|refused"'))),
)

row("Durations", 8)
durations = each(of_jobs("processing_duration_seconds_bucket"), "le, job_type")
lines(
    7, "Processing duration",
    "From receive to settlement; half of the messages take less than p50, 95 % less than p95. Between the buckets (10 s, 1 min, "
    "10 min, 1 h, 4 h, 12 h) it is interpolated. Bad: p95 near --max-duration: raise that, or make the command faster.",
    ("p50 {{job_type}}", quantile(0.5, durations)), ("p95 {{job_type}}", quantile(0.95, durations)), every="10m", unit="s",
)
bars(
    7, "Where the time goes",
    "Bad: much receive (pods wait for messages that do not come: shorten --wait, or KEDA creates too many pods), much fetch (the network, or "
    "S3 in another region), much settle (SQS answers slowly).",
    ("{{phase}}", each(of_jobs("phase_seconds_total"), "phase")), unit="s",
)
messages = counted(of_jobs("messages_processed_total"), by="job_type")
ranking(
    5, "Mean of a message, by phase", "The chosen time. Bad: unusual for this job type.", "{{job_type}}: {{phase}}",
    f"{counted(of_jobs('phase_seconds_total'), by='job_type, phase')} / on (job_type) group_left () ({messages} > 0)", unit="s",
)
lag = each(series("first_receive_lag_seconds_bucket"), "le")
lines(
    5, "First receive",
    "How long new messages waited. Bad: it grows: there are too few pods, or they start too slowly, see 'Is it keeping up?'.",
    ("p50", quantile(0.5, lag)), ("p95", quantile(0.95, lag)), every="10m", unit="s",
)

row("Leases and visibility", 8)
bars(
    6, "Extensions",
    "Heartbeats: extensions of the visibility timeout. A failed one is retried. Bad: lease_lost: the command was stopped, and another pod may have the message. "
    "at_ceiling: SQS's limit of 12 hours is reached; split such work, or use --checkpoint.",
    ("{{result}}", each(series("visibility_extensions_total"), "result")),
    overrides=colours({"extended": "green", "failed": "orange", "lease_lost": "purple", "at_ceiling": "red"}),
)
lines(
    6, "Lowest remaining lease at the verdict",
    "Bad: near 0: heartbeats come late. Is the CPU limit too low, does the node stall, is SQS slow? Raise --visibility-timeout "
    "meanwhile.",
    ("{{queue}}", f"min by (queue) (last_over_time({series('lease_remaining_seconds')}[$__interval]))"), every="2m", unit="s", calcs=["min"],
)
bars(
    6, "Deletes and releases",
    "Requests that settled a message. Bad: deletes that were refused, or not sent because the lease was "
    "lost: that work will be repeated.",
    ("delete: {{result}}", each(series("deletes_total"), "result")), ("release: {{cause}}", each(series("releases_total"), "cause")),
    overrides=colours({"delete: deleted": "green"}),
)
bars(
    6, "Work lost",
    "Time of work that has to be repeated, by reason. Bad: much stopped: deployments or spot nodes interrupt long work; any lease_lost.",
    ("{{reason}}", each(of_jobs("work_discarded_seconds_total"), "reason")), unit="s", overrides=OUTCOMES,
)

row("Receive counts, and messages near the dead-letter queue", 8)
that_received = f"and on ({POD}) ({by_pod(series('messages_received_total'), '$__range')}) > 0"
ranking(
    6, "Receive counts of the last messages",
    "The last message of each pod; 1 is a first attempt. Bad: many above 1: each failure uses up one receive, and so does each "
    "pod stop and each pod that dies.",
    "receive {{count}}", f'count_values("count", last_over_time({series("receive_count")}[$__range]) {that_received})',
)
bars(
    9, "Failures and last attempts",
    "Bad: any last attempt: the message becomes a dead letter. Find the reason (log, or --attempts), fix it, then redrive.",
    ("comes back", each(of_jobs("failures_total", 'final_attempt="false"'))),
    ("last attempt", each(of_jobs("failures_total", 'final_attempt="true"'))),
    overrides=colours({"comes back": "orange", "last attempt": "red"}),
)
table(
    9, "Pods whose last message had one attempt left, or none",
    "Search the log for the pod (column instance): its records name the message and the object. Bad: the same object again and again.",
    ("received", f"last_over_time({series('receive_count')}[$__range])"
                 f" >= on ({POD}, queue) last_over_time({series('max_receive_count')}[$__range]) - 1 {that_received}", "short"),
)

row("Resources of the commands", 8)
lines(
    6, "CPU",
    "Average number of busy cores. It is counted when a message ends, so long work appears late and all at once. Bad: near the "
    "CPU limit of the containers.",
    ("{{job_type}}", f"{each(of_jobs('command_cpu_seconds_total'), 'job_type')} / ($__interval_ms / 1000)"), every="2m",
)
lines(
    6, "Peak memory of one process",
    "The largest of all pods. Bad: near the container's limit, at which the kernel kills the whole pod, including leasehold.",
    ("{{job_type}}", f"max by (job_type) (last_over_time({of_jobs('command_peak_memory_bytes')}[$__interval]))"),
    every="2m", unit="bytes", calcs=["max"],
)
bars(
    6, "Bytes of objects", "Bad: unlike other days: ask the uploaders.",
    ("{{job_type}}", each(of_jobs("object_bytes_total"), "job_type")), unit="bytes",
)
command = each(of_jobs("phase_seconds_total", 'phase="command"'), "job_type")
lines(
    6, "Bytes per second of the command", "Bad: it falls: the command, or a service that it needs, has become slow.",
    ("{{job_type}}", f"{each(of_jobs('object_bytes_total'), 'job_type')} / ({command} > 0)"), every="10m", unit="Bps",
)

line(8)
lines(
    24, "Numbers of the commands",
    "What the commands wrote as metrics into JOB_RESULT_FILE: the mean of the pods that finished. Bad: unlike other days.",
    ("{{job_type}}: {{name}}", f"avg by (job_type, name) (last_over_time({of_jobs('command_result')}[$__interval])"
                               f" and on ({POD}) {finished('$__interval', '$__interval_ms / 1000')})"), every="2m",
)

row("Pods: at work, stopped, ended without reporting", 8)
table(
    9, "At work now",
    "Bad: a pod that is at work for longer than the command ever takes, without progress: set --stall-timeout. Progress is missing if the "
    "command does not report it (JOB_RESULT_FILE).",
    ("at work", f"time() - ({alive(series('run_started_timestamp_seconds'))})", "s"),
    ("progress", alive(of_jobs("progress_ratio")), "percentunit"),
    ("received", alive(series("receive_count")), "short"), without=["job_type"],
)
table(
    9, "Ended without reporting",
    "Pods that did not report their end, and have not pushed for two minutes plus four push intervals. Bad: any: out of memory "
    "(which kills the whole pod), evicted, node lost; or the Pushgateway was down when they ended. `kubectl describe pod` and the "
    "row 'Platform' show which. Their messages are visible again when the visibility timeout ends.",
    ("last push", f"last_over_time(push_time_seconds[$__range]) * 1000 and on ({POD}) ({DIED})", "dateTimeFromNow"),
)
bars(
    6, "Stops",
    "Pods that were asked to stop. Bad: many at once: a deployment (rollout.strategy must be gradual), a drain, reclaimed spot "
    "nodes.",
    ("{{signal}}", each(series("stops_total"), "signal")),
)
line(7)
lines(
    8, "Groups at the Pushgateway",
    "One for each pod that was not swept yet. Bad: the number grows, and the oldest finished hours ago: `leasehold sweep` does not run.",
    ("groups", f"count({series('build_info')})"),
    ("hours since the oldest finished", f"(time() - min({series('run_finished_timestamp_seconds')})) / 3600"),
)
bars(
    8, "Reporting failures",
    "Pushes that failed (a later push reports them), and log lines that were lost. Bad: more than a few. Pushes: is the Pushgateway "
    "overloaded, or does it refuse them (see its log)? Lines: the reader of the pods' output is too slow.",
    ("failed pushes", each(series("pushes_total", 'result="failed"'))), ("lost log lines", each(series("log_lines_dropped_total"))),
)
table(
    8, "Versions", "The versions of the pods in the chosen time. Bad: an old version long after a deployment.",
    ("pods", f"count by (namespace, queue, version) (last_over_time({series('build_info')}[$__range]))", "short"),
)

row("Platform: KEDA, Kubernetes, SQS (where they are scraped)", 8)
lines(
    6, "What KEDA counts",
    "Bad: none, while messages wait (check KEDA's role, the queue's URL, the region), or a number that never changes (see KEDA's errors beside).",
    ("{{queue}}", f"max by (queue) ({KEDA})"),
    ("active: {{scaledObject}}", 'max by (scaledObject) (keda_scaler_active{type="scaledjob"})'),
)
lines(
    6, "KEDA's errors and delays",
    "Errors per second, duration of a request to SQS, delay of the scaling loop. Bad: any error: see `kubectl describe scaledjob` and the "
    "operator's log.",
    ("errors: {{scaledObject}}", 'sum by (scaledObject) (rate(keda_scaler_detail_errors_total{type="scaledjob"}[$__rate_interval]))'),
    ("{{scaledJob}}", "sum by (scaledJob) (rate(keda_scaled_job_errors_total[$__rate_interval]))"),
    ("request duration", 'max(keda_scaler_metrics_latency_seconds{type="scaledjob"})'),
    ("loop delay", 'max(keda_internal_scale_loop_latency_seconds{type="scaledjob"})'),
)
lines(
    6, "Pods of ScaledJobs by phase",
    "Bad: Pending for long: no node has room, the image cannot be pulled, a volume is missing. `kubectl describe pod` shows which.",
    ("{{phase}}", f"sum by (phase) (kube_pod_status_phase * on (namespace, pod) group_left () ({OF_SCALED_JOBS}))"),
)
lines(
    6, "Why containers wait or ended",
    "Bad: OOMKilled: raise the memory limit. ImagePullBackOff: check the image's name and the registry. CreateContainerConfigError: a "
    "Secret or ConfigMap is missing. Error is any exit code other than 0, see 'Exit codes of the pods'.",
    ("{{reason}}", 'sum by (reason) (kube_pod_container_status_terminated_reason{reason!="Completed"}'
                   f" * on (namespace, pod) group_left () ({OF_SCALED_JOBS})) > 0"),
    ("waits: {{reason}}", "sum by (reason) (kube_pod_container_status_waiting_reason"
                          f" * on (namespace, pod) group_left () ({OF_SCALED_JOBS})) > 0"),
)
line(8)
lines(
    8, "Queue depth",
    "From CloudWatch, some minutes old. Bad: visible grows; or in flight stays high although no pod is at work: pods died while they held messages, "
    "which are visible again when their visibility timeouts end.",
    ("visible: {{queue}}", f"max by (queue) ({of_ours(cloudwatch('approximate_number_of_messages_visible'))})"),
    ("in flight: {{queue}}", f"max by (queue) ({of_ours(cloudwatch('approximate_number_of_messages_not_visible'))})"),
)
lines(
    8, "Age of the oldest message",
    "From CloudWatch. Bad: near the queue's retention period, after which SQS deletes messages without notice.",
    ("{{queue}}", f"max by (queue) ({of_ours(cloudwatch('approximate_age_of_oldest_message', 'average|maximum'))})"), unit="s",
)
lines(
    8, "Dead letters",
    "From CloudWatch: visible messages of queues with dlq or dead-letter in their name. Bad: any. Find the reason (--attempts), fix it, redrive.",
    ("{{queue}}", f"max by (queue) ({cloudwatch('approximate_number_of_messages_visible', queues='.*(dlq|dead-letter).*')})"),
)


def variable(name, label, values):
    """Of several values, or all: then also those of pods that do not have the label."""
    return {"name": name, "label": label, "type": "query", "datasource": PROMETHEUS, "query": {"query": values, "refId": name},
            "definition": values, "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]}}


dashboard = {
    "uid": "leasehold",
    "title": "leasehold",
    "description": "Jobs that KEDA starts for messages about S3 objects. Counts are of the chosen time, true also for pods that lived seconds.",
    "tags": ["keda", "leasehold", "sqs"],
    "schemaVersion": 39,
    "editable": True,
    "graphTooltip": 1,
    "refresh": "1m",
    "time": {"from": "now-6h", "to": "now"},
    "templating": {"list": [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        variable("namespace", "Namespace", "label_values(leasehold_build_info, namespace)"),
        variable("queue", "Queue", 'label_values(leasehold_build_info{namespace=~"$namespace"}, queue)'),
        variable("job_type", "Job type", f"label_values(leasehold_messages_processed_total{{{CHOSEN}}}, job_type)"),
    ]},
    "annotations": {"list": [
        {"name": "Stops", "datasource": PROMETHEUS, "enable": True, "iconColor": "orange", "step": "2m",
         "expr": f"{each(series('stops_total'), 'namespace, queue, signal')} > 0", "titleFormat": "{{signal}}",
         "textFormat": "pods of {{queue}} were asked to stop", "tagKeys": "namespace,queue"},
    ]},
    # The panels of an open row follow it, those of a collapsed one are inside.
    "panels": [panel for row in rows for panel in ([row] if row["collapsed"] else [row | {"panels": []}, *row["panels"]])],
}

Path(__file__).with_name("dashboard.json").write_text(json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n")

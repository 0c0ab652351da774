"""Writes the tests of the alert rules with the labels that a shipped scrape configuration gives.

    label_rule_tests.py compose FILE OUT      labels of a Prometheus configuration
    label_rule_tests.py kubernetes FILE OUT   labels of a ServiceMonitor in rendered manifests

In rules_test.yml the series of gateways have `job="telecomx-gateway"`. OUT has the labels of a
scrape instead.
"""

import pathlib
import re
import sys

import yaml

RULES = pathlib.Path("deploy/prometheus/rules.yml")
RULE_TESTS = pathlib.Path("deploy/prometheus/rules_test.yml")
# Labels that the rules keep.
KEPT = ("job", "namespace")


def compose(path):
    [scrape] = yaml.safe_load(pathlib.Path(path).read_text())["scrape_configs"]
    return {"job": scrape["job_name"]}


def kubernetes(path):
    """As prometheus-operator: the job is the name of the Service, or its label jobLabel."""
    objects = [
        document for document in yaml.safe_load_all(pathlib.Path(path).read_text()) if document
    ]
    [monitor] = [document for document in objects if document["kind"] == "ServiceMonitor"]
    [deployment] = [document for document in objects if document["kind"] == "Deployment"]
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    [service] = [
        document
        for document in objects
        if document["kind"] == "Service"
        and selector <= document["metadata"].get("labels", {}).items()
    ]
    name = service["metadata"]["name"]
    job_label = monitor["spec"].get("jobLabel")
    return {
        "job": service["metadata"]["labels"].get(job_label, name) if job_label else name,
        "namespace": monitor["metadata"]["namespace"],
        "service": name,
        "endpoint": monitor["spec"]["endpoints"][0]["port"],
        "container": deployment["spec"]["template"]["spec"]["containers"][0]["name"],
        "pod": "telecomx-gateway-6d5f-abcde",
    }


def relabel(tests, labels):
    series_labels = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    for test in tests["tests"]:
        for series in test["input_series"]:
            series["series"] = re.sub(
                r'job="telecomx-gateway"', lambda _: series_labels, series["series"]
            )
        for case in test["alert_rule_test"]:
            for alert in case["exp_alerts"]:
                if alert["exp_labels"].get("job") == "telecomx-gateway":
                    alert["exp_labels"] |= {
                        name: value for name, value in labels.items() if name in KEPT
                    }
    tests["rule_files"] = [str(RULES.resolve())]
    return tests


if __name__ == "__main__":
    command, path, out = sys.argv[1:]
    labels = {"compose": compose, "kubernetes": kubernetes}[command](path)
    tests = relabel(yaml.safe_load(RULE_TESTS.read_text()), labels)
    pathlib.Path(out).write_text(yaml.safe_dump(tests))
    print(", ".join(f"{name}={value}" for name, value in labels.items()))

"""Judges what is shipped for deployments against the schemas of those who will read it.

    judge.py kubernetes FILE    what `kubectl kustomize` made of an overlay
    judge.py compose FILE
    judge.py sbom FILE
    judge.py series FOLDER      alert rules and dashboard, against what the gateway counts

Says what it judged, one line each, or all that is wrong, and ends with 1.
"""

import json
import sys

import yaml

problems = []


def wrong(where, what):
    problems.append(f"{where}: {what}")


def kubernetes(path):
    import kubernetes_validate
    from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

    with open(path) as file:
        objects = [one for one in yaml.safe_load_all(file) if one]
    for one in objects:
        name = f"{one['kind']}/{one['metadata']['name']}"
        try:
            if one["apiVersion"].startswith("monitoring.coreos.com/"):
                ServiceMonitor.model_validate(one, extra="forbid")
                print(f"{name}: as prometheus-operator 0.80 has it")
            else:
                version = kubernetes_validate.validate(one, "1.37", strict=True)
                print(f"{name}: as Kubernetes {version} has it")
        except Exception as error:
            wrong(name, error)
    if not problems:
        together(objects)


def together(objects):
    """What no schema tells: that the objects mean each other."""

    def of(kind):
        return [one for one in objects if one["kind"] == kind]

    def fits(selector, labels):
        return bool(selector) and selector.items() <= labels.items()

    [deployment] = of("Deployment")
    template = deployment["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    [container] = pod["containers"]
    ports = {port["name"] for port in container["ports"]}
    # The gateway's pods, and those of what stands beside it.
    templates = [one["spec"]["template"] for kind in ("Deployment", "StatefulSet") for one in of(kind)]

    def selected(selector):
        return [one for one in templates if fits(selector, one["metadata"]["labels"])]

    def ports_of(found):
        return {port["name"] for one in found for each in one["spec"]["containers"] for port in each["ports"]}

    namespaces = {one["metadata"].get("namespace") for one in objects if one["kind"] != "Namespace"}
    if namespaces != {one["metadata"]["name"] for one in of("Namespace")}:
        wrong("namespaces", f"the objects are in {namespaces}")
    maps = {one["metadata"]["name"] for one in of("ConfigMap")}
    for volume in (volume for one in templates for volume in one["spec"]["volumes"]):
        if "configMap" in volume and volume["configMap"]["name"] not in maps:
            wrong("volumes", f"a pod mounts the ConfigMap {volume['configMap']['name']}, which is not there: {maps}")
    if maps & {"telecomx-gateway", "telecomx-gateway-valkey"}:
        wrong("ConfigMap", "its name has no hash, so that a change would roll nothing out")
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    if pod["serviceAccountName"] not in {one["metadata"]["name"] for one in of("ServiceAccount")}:
        wrong("Deployment", "its ServiceAccount is not there")
    for spread in pod["topologySpreadConstraints"]:
        if not fits(spread["labelSelector"]["matchLabels"], labels):
            wrong("Deployment", f"the spread over {spread['topologyKey']} counts other pods")
    for service in of("Service"):
        found = selected(service["spec"]["selector"])
        if len(found) != 1:
            wrong(service["metadata"]["name"], f"selects {len(found)} kinds of pods")
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in ports_of(found):
                wrong(service["metadata"]["name"], f"the container has no port {port['targetPort']}")
    for one in of("StatefulSet"):
        if one["spec"]["serviceName"] not in {service["metadata"]["name"] for service in of("Service")}:
            wrong(one["metadata"]["name"], "its Service is not there")
    for kind, selector in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for one in of(kind):
            if not selected(one["spec"][selector].get("matchLabels")):
                wrong(kind, "selects no pod")
    for policy in of("NetworkPolicy"):
        own_ports = ports_of(selected(policy["spec"]["podSelector"].get("matchLabels")))
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                if port["port"] not in own_ports:
                    wrong("NetworkPolicy", f"the container has no port {port['port']}")
        # To pods of these manifests: by a port that they have.
        for rule in policy["spec"].get("egress", []):
            to = [selected(peer["podSelector"].get("matchLabels")) for peer in rule["to"] if "podSelector" in peer
                  and "namespaceSelector" not in peer]
            if not all(to):
                wrong("NetworkPolicy", "lets out to pods that are not there")
            for port in rule["ports"] if to else []:
                if port["port"] not in ports_of([pod for pods in to for pod in pods]):
                    wrong("NetworkPolicy", f"lets out to a port {port['port']} that nobody has")
    # What the gateway is told to connect to.
    for variable in container.get("env", []):
        if variable["name"].endswith("__CLUSTER__URL"):
            host = variable["value"].split("//")[1].split(":")[0]
            if host not in {service["metadata"]["name"] for service in of("Service")}:
                wrong("Deployment", f"its Redis {host} is no Service")
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    for variable in container.get("env", []):
        if variable["name"].endswith("_FILE") and variable["value"].rsplit("/", 1)[0] not in mounted:
            wrong("Deployment", f"{variable['name']} is nothing that is mounted")
    for scaler in of("HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] != deployment["metadata"]["name"]:
            wrong("HorizontalPodAutoscaler", "scales something else")
        if "replicas" in deployment["spec"]:
            wrong("Deployment", "has replicas beside a HorizontalPodAutoscaler")
    for monitor in of("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        found = [one for one in of("Service") if fits(wanted, one["metadata"].get("labels", {}))]
        offered = {port["name"] for one in found for port in one["spec"]["ports"]}
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in offered:
                wrong("ServiceMonitor", f"no Service that it selects has a port {endpoint['port']}")
            if endpoint["authorization"]["credentials"]["name"] not in secrets:
                wrong("ServiceMonitor", "its token is not the gateway's")
    probes = [container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    if not set(probes) <= ports:
        wrong("Deployment", "a probe asks a port that is not there")
    # The restricted profile of the Pod Security Standards, which the namespace asks for.
    for one in templates:
        [its_own] = one["spec"]["containers"]
        own, whole = its_own["securityContext"], one["spec"]["securityContext"]
        restricted = (
            whole["runAsNonRoot"] is True
            and whole["seccompProfile"]["type"] == "RuntimeDefault"
            and own["allowPrivilegeEscalation"] is False
            and own["capabilities"] == {"drop": ["ALL"]}
            and own["readOnlyRootFilesystem"] is True
        )
        if not restricted:
            wrong(its_own["name"], "is not what the restricted profile allows")
    if not problems:
        print(f"{len(objects)} objects that fit each other")


def compose(path):
    from compose_spec import PyCompose

    # Merge keys are YAML's matter, not the specification's.
    with open(path) as file:
        document = yaml.safe_load(file)
    try:
        services = PyCompose.from_yaml(json.dumps(document)).to_spec().services
        print(f"as the Compose specification has it: {', '.join(services)}")
    except Exception as error:
        wrong(path, error)


def sbom(path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    with open(path) as file:
        text = file.read()
    error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    if error is not None:
        wrong(path, error)
        return
    document = json.loads(text)
    components = document["components"]
    bare = [one["name"] for one in components if not one.get("licenses") or not one.get("hashes")]
    if len(components) < 50 or bare:
        wrong(path, f"{len(components)} components; without licence or checksum: {bare}")
    print(f"as CycloneDX {document['specVersion']} has it: {len(components)} components")


def series(folder):
    """Every series that is asked for is one that the gateway has, and every alert has its entry in the runbook."""
    import pathlib
    import re

    folder = pathlib.Path(folder)
    metrics = pathlib.Path("src/telemetry/metrics.rs").read_text()
    runbook = pathlib.Path("docs/RUNBOOK.md").read_text()
    rules, dashboard = folder / "prometheus/rules.yml", folder / "grafana/telecomx-gateway.json"
    alerts = [rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]
    asked = [(rule["alert"], rule["expr"]) for rule in alerts]
    for panel in json.loads(dashboard.read_text())["panels"]:
        asked += [(panel["title"], target["expr"]) for target in panel.get("targets", [])]
    names = {(where, name) for where, expr in asked for name in re.findall(r"telecomx_gateway_(\w+)", expr)}
    for where, name in sorted(names):
        if not re.search(rf'("|{{PREFIX}}){name.removesuffix("_bucket")}"', metrics):
            wrong(where, f"asks for telecomx_gateway_{name}, which there is not")
    for rule in alerts:
        if f"## {rule['alert']}\n" not in runbook:
            wrong(rule["alert"], "has no entry in docs/RUNBOOK.md")
        if rule["annotations"]["runbook"] != f"docs/RUNBOOK.md#{rule['alert'].lower()}":
            wrong(rule["alert"], "does not point to its entry in docs/RUNBOOK.md")
    print(f"{len(alerts)} alerts with their entries, {len({name for _, name in names})} series, all of which there are")


if __name__ == "__main__":
    {"kubernetes": kubernetes, "compose": compose, "sbom": sbom, "series": series}[sys.argv[1]](sys.argv[2])
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))

"""Validates the shipped deployment files against the schemas of their readers and each other.

    validate.py kubernetes FILE... output of `kubectl kustomize` or `helm template`
    validate.py rejects FILE...    the same, and fails unless each file has a problem
    validate.py same KUSTOMIZE HELM    that both render the same objects
    validate.py compose FILE
    validate.py sbom FILE
    validate.py alerts             alert rules against tests, runbook and metrics of the gateway
    validate.py dashboard          Grafana dashboard against the metrics of the gateway
    validate.py timeouts           idle timeouts of the edge snippets against the gateway's
    validate.py image              files that the Dockerfile copies against those of a build
    validate.py unit               directives of the systemd unit that the documents rely on

Prints what was checked, or each problem and exits with 1.
"""

import json
import pathlib
import re
import sys
import tomllib

import yaml

DEPLOY = pathlib.Path("deploy")
RULES = DEPLOY / "prometheus/rules.yml"
RULE_TESTS = DEPLOY / "prometheus/rules_test.yml"
DASHBOARD = DEPLOY / "grafana/telecomx-gateway.json"
RUNBOOK = pathlib.Path("docs/RUNBOOK.md")
PROGRAM = "/usr/bin/telecomx-gateway"
RUNBOOK_URL = "https://telecomx-gateway.example/docs/RUNBOOK.md"
# Google Cloud closes an idle connection to its backend after 600 s, the longest of the common load
# balancers.
LONGEST_IDLE_TIMEOUT = 600

problems = []


def problem(place, text):
    problems.append(f"{place}: {text}")


def seconds(text):
    """Converts a duration of the gateway, of nginx or of HAProxy."""
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)?", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, None: 1}[unit]


def size(text):
    number, unit = re.fullmatch(r"(\d+) ?([KMG]i?)?B?", text).groups()
    return int(number) * 1024 ** " KMG".index((unit or " ")[0])


def load_rules():
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def kubernetes(*paths):
    for path in paths:
        print(path)
        manifests(path)


def rejects(*paths):
    """Without this check a validation that accepts everything would not be noticed."""
    for path in paths:
        manifests(path)
        if not problems:
            print(f"{path}: accepted; expected a problem")
            sys.exit(1)
        problems.clear()
    print(f"{len(paths)} wrong files are rejected")


def manifests(path):
    import kubernetes_validate
    from cloudcoil.models.prometheus_operator import v1 as prometheus_operator

    with open(path) as file:
        objects = [document for document in yaml.safe_load_all(file) if document]
    for document in objects:
        name = f"{document['kind']}/{document['metadata']['name']}"
        try:
            if document["apiVersion"].startswith("monitoring.coreos.com/"):
                model = getattr(prometheus_operator, document["kind"])
                model.model_validate(document, extra="forbid")
                print(f"{name}: valid for prometheus-operator 0.80")
            else:
                version = kubernetes_validate.validate(document, "1.37", strict=True)
                print(f"{name}: valid for Kubernetes {version}")
        except Exception as error:
            problem(name, error)
    if not problems:
        Manifests(objects).check()
    if not problems:
        print(f"{len(objects)} objects with consistent references")


class Manifests:
    """The objects of one deployment, with checks that no schema can express."""

    def __init__(self, objects):
        self.objects = objects
        [self.deployment] = self.of("Deployment")
        template = self.deployment["spec"]["template"]
        self.pod, self.labels = template["spec"], template["metadata"]["labels"]
        [self.container] = self.pod["containers"]
        # The pods of the gateway and of Valkey.
        workloads = self.of("Deployment") + self.of("StatefulSet")
        self.templates = [workload["spec"]["template"] for workload in workloads]

    def of(self, kind):
        return [document for document in self.objects if document["kind"] == kind]

    def names(self, kind):
        return {document["metadata"]["name"] for document in self.of(kind)}

    def selected(self, selector):
        return [
            template
            for template in self.templates
            if matches(selector, template["metadata"]["labels"])
        ]

    def check(self):
        self.check_namespaces()
        self.check_volumes()
        self.check_services()
        self.check_network_policies()
        self.check_scaling()
        self.check_environment()
        self.check_probes()
        self.check_monitoring()
        self.check_configuration()
        for template in self.templates:
            check_restricted(template["spec"])

    def check_namespaces(self):
        # Helm has the namespace on its command line.
        found = {
            document["metadata"].get("namespace")
            for document in self.objects
            if document["kind"] != "Namespace"
        }
        if self.of("Namespace") and found != self.names("Namespace"):
            problem("namespaces", f"the objects are in {found}")

    def check_volumes(self):
        maps = self.names("ConfigMap")
        for volume in (
            volume for template in self.templates for volume in template["spec"]["volumes"]
        ):
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                problem("volumes", f"missing ConfigMap {volume['configMap']['name']}; found {maps}")
        # A hash in the name, or in an annotation of the pod.
        annotations = self.deployment["spec"]["template"]["metadata"].get("annotations", {})
        if maps & {"telecomx-gateway"} and not any(
            name.startswith("checksum/") for name in annotations
        ):
            problem(
                "ConfigMap",
                "neither its name nor the pod has a hash, so a change is not rolled out",
            )
        if self.pod["serviceAccountName"] not in self.names("ServiceAccount"):
            problem("Deployment", "missing ServiceAccount")
        for constraint in self.pod["topologySpreadConstraints"]:
            if not matches(constraint["labelSelector"]["matchLabels"], self.labels):
                problem(
                    "Deployment", f"the spread over {constraint['topologyKey']} selects other pods"
                )

    def check_services(self):
        for service in self.of("Service"):
            found = self.selected(service["spec"]["selector"])
            if len(found) != 1:
                problem(
                    service["metadata"]["name"], f"selects {len(found)} kinds of pods; expected 1"
                )
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in ports_of(found):
                    problem(
                        service["metadata"]["name"],
                        f"the container has no port {port['targetPort']}",
                    )
        for workload in self.of("StatefulSet"):
            if workload["spec"]["serviceName"] not in self.names("Service"):
                problem(workload["metadata"]["name"], "missing Service")

    def check_network_policies(self):
        for policy in self.of("NetworkPolicy"):
            own_ports = ports_of(self.selected(policy["spec"]["podSelector"].get("matchLabels")))
            for rule in policy["spec"].get("ingress", []):
                for port in rule["ports"]:
                    if port["port"] not in own_ports:
                        problem("NetworkPolicy", f"the container has no port {port['port']}")
            for rule in policy["spec"].get("egress", []):
                self.check_egress(rule)
        dns = [
            peer
            for policy in self.of("NetworkPolicy")
            for rule in policy["spec"].get("egress", [])
            if {(port["protocol"], port["port"]) for port in rule["ports"]}
            == {("UDP", 53), ("TCP", 53)}
            for peer in rule["to"]
        ]
        if not any("namespaceSelector" in peer for peer in dns):
            problem("NetworkPolicy", "port 53 of kube-system is not permitted")
        if not any(peer.get("ipBlock", {}).get("cidr") == "169.254.20.10/32" for peer in dns):
            problem(
                "NetworkPolicy", "port 53 of NodeLocal DNSCache, 169.254.20.10, is not permitted"
            )

    def check_egress(self, rule):
        """A rule to pods of these manifests names a port that they have."""
        own_peers = [
            self.selected(peer["podSelector"].get("matchLabels"))
            for peer in rule["to"]
            if "podSelector" in peer and "namespaceSelector" not in peer
        ]
        if not all(own_peers):
            problem("NetworkPolicy", "permits egress to pods that do not exist")
        for port in rule["ports"] if own_peers else []:
            if port["port"] not in ports_of(
                [template for found in own_peers for template in found]
            ):
                problem("NetworkPolicy", f"permits egress to a port {port['port']} that no pod has")

    def check_scaling(self):
        for kind, selector in (
            ("PodDisruptionBudget", "selector"),
            ("NetworkPolicy", "podSelector"),
        ):
            for document in self.of(kind):
                if not self.selected(document["spec"][selector].get("matchLabels")):
                    problem(kind, "selects no pod")
        for scaler in self.of("HorizontalPodAutoscaler"):
            if scaler["spec"]["scaleTargetRef"]["name"] != self.deployment["metadata"]["name"]:
                problem("HorizontalPodAutoscaler", "scales another object")
            if "replicas" in self.deployment["spec"]:
                problem("Deployment", "has replicas in addition to a HorizontalPodAutoscaler")

    def check_environment(self):
        mounted = {mount["mountPath"] for mount in self.container["volumeMounts"]}
        for variable in self.container.get("env", []):
            if variable["name"].endswith("__SERVER__LISTEN"):
                problem("Deployment", f"{variable['name']} overrides the mounted file")
            if variable["name"].endswith("__CLUSTER__URL"):
                host = variable["value"].split("//")[1].split(":")[0]
                if host not in self.names("Service"):
                    problem("Deployment", f"there is no Service for its Redis {host}")
            if (
                variable["name"].endswith("_FILE")
                and variable["value"].rsplit("/", 1)[0] not in mounted
            ):
                problem("Deployment", f"{variable['name']} is not in a mounted folder")
        if {"name": "ndots", "value": "1"} not in self.pod["dnsConfig"]["options"]:
            problem(
                "Deployment",
                "dnsConfig has no ndots: 1, so each lookup tries the search list first",
            )

    def check_probes(self):
        ports = {port["name"] for port in self.container["ports"]}
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = self.container[name]
            if probe["httpGet"]["port"] not in ports:
                problem("Deployment", f"{name}: missing port {probe['httpGet']['port']}")
            if probe["httpGet"]["port"] != "admin":
                problem(
                    "Deployment",
                    f"{name} does not use the admin listener, which has reserved descriptors",
                )
            if probe.get("timeoutSeconds", 1) < 2 or probe["failureThreshold"] < 2:
                problem("Deployment", f"{name} fails after a single response that takes a second")

    def check_monitoring(self):
        secrets = {
            volume["secret"]["secretName"] for volume in self.pod["volumes"] if "secret" in volume
        }
        for monitor in self.of("ServiceMonitor"):
            selector = monitor["spec"]["selector"]["matchLabels"]
            services = [
                service for service in self.of("Service") if matches(selector, labels_of(service))
            ]
            offered = {port["name"] for service in services for port in service["spec"]["ports"]}
            for endpoint in monitor["spec"]["endpoints"]:
                if endpoint["port"] not in offered:
                    problem("ServiceMonitor", f"no selected Service has a port {endpoint['port']}")
                if endpoint["authorization"]["credentials"]["name"] not in secrets:
                    problem("ServiceMonitor", "its Secret is not the gateway's")
            jobs = {labels_of(service).get(monitor["spec"].get("jobLabel")) for service in services}
            if jobs != {"telecomx-gateway"}:
                problem(
                    "ServiceMonitor",
                    f"jobLabel gives the jobs {jobs}; the alerts select telecomx-gateway",
                )
        shipped = {rule["alert"] for rule in load_rules()}
        applied = {
            rule["alert"]
            for document in self.of("PrometheusRule")
            for group in document["spec"]["groups"]
            for rule in group["rules"]
        }
        if applied != shipped:
            problem("PrometheusRule", f"differs from {RULES} in {sorted(applied ^ shipped)}")

    def check_configuration(self):
        """The configuration file against the limits of the pod."""
        [text] = [
            file
            for document in self.of("ConfigMap")
            if (file := document["data"].get("gateway.toml"))
        ]
        configuration = tomllib.loads(text)
        server, cache = configuration["server"], configuration["cache"]
        if seconds(server["keepalive_timeout"]) <= LONGEST_IDLE_TIMEOUT:
            problem(
                "gateway.toml", f"keepalive_timeout is not longer than {LONGEST_IDLE_TIMEOUT} s"
            )
        drain = seconds(server["drain_delay"]) + seconds(server["drain"])
        if self.pod["terminationGracePeriodSeconds"] <= drain:
            problem(
                "Deployment",
                f"terminationGracePeriodSeconds is not longer than the drain of {drain} s",
            )
        limit = size(self.container["resources"]["limits"]["memory"])
        if limit < 2.5 * size(cache["max_bytes"]):
            problem("Deployment", "the memory limit is below 2.5 times cache.max_bytes")


def matches(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def labels_of(document):
    return document["metadata"].get("labels", {})


def ports_of(templates):
    return {
        port["name"]
        for template in templates
        for container in template["spec"]["containers"]
        for port in container["ports"]
    }


def check_restricted(pod):
    """The restricted profile of the Pod Security Standards, which the namespaces enforce."""
    [container] = pod["containers"]
    context = container["securityContext"]
    restricted = (
        pod["securityContext"]["runAsNonRoot"] is True
        and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        and context["allowPrivilegeEscalation"] is False
        and context["capabilities"] == {"drop": ["ALL"]}
        and context["readOnlyRootFilesystem"] is True
    )
    if not restricted:
        problem(container["name"], "exceeds the restricted profile")


def normalized(path):
    """The objects of a file by kind and name, without the differences of kustomize and Helm."""
    with open(path) as file:
        # The hash that kustomize appends to the name of a ConfigMap; Helm has an annotation of the
        # pod.
        text = re.sub(r"\b(telecomx-gateway(-valkey)?)-[0-9a-z]{10}\b", r"\1", file.read())
    objects = {}
    for document in yaml.safe_load_all(text):
        # `helm install --create-namespace` creates it.
        if not document or document["kind"] == "Namespace":
            continue
        document["metadata"].pop("namespace", None)
        if document["kind"] == "Deployment":
            document["spec"]["template"]["metadata"].pop("annotations", None)
            [container] = document["spec"]["template"]["spec"]["containers"]
            for entries in (
                container["volumeMounts"],
                document["spec"]["template"]["spec"]["volumes"],
            ):
                entries.sort(key=lambda entry: entry["name"])
        objects[document["kind"], document["metadata"]["name"]] = document
    return objects


def same(kustomize, helm):
    first, second = normalized(kustomize), normalized(helm)
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            problem("/".join(key), f"kustomize and Helm differ: {first.get(key)} {second.get(key)}")
    print(f"kustomize and Helm render the same {len(first)} objects")


def compose(path):
    from compose_spec import PyCompose

    # YAML resolves merge keys; the specification does not have them.
    with open(path) as file:
        document = yaml.safe_load(file)
    try:
        services = PyCompose.from_yaml(json.dumps(document)).to_spec().services
        print(f"valid for the Compose specification: {', '.join(services)}")
    except Exception as error:
        problem(path, error)
    for name, service in document["services"].items():
        if name.startswith("gateway") and "build" not in service and "image" not in service:
            continue  # Adds to a service of another file.
        if (
            name.startswith("gateway")
            and service.get("ulimits", {}).get("nofile", {}).get("soft", 0) < 65536
        ):
            problem(f"{path}: {name}", "the limit of file descriptors is below 65,536")


def sbom(path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    with open(path) as file:
        text = file.read()
    error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    if error is not None:
        problem(path, error)
        return
    document = json.loads(text)
    components = document["components"]
    incomplete = [
        entry["name"]
        for entry in components
        if not entry.get("licenses") or not entry.get("hashes")
    ]
    if len(components) < 50 or incomplete:
        problem(path, f"{len(components)} components; without licence or checksum: {incomplete}")
    print(f"valid for CycloneDX {document['specVersion']}: {len(components)} components")


def check_series(queries):
    """Checks that the gateway has each metric that a query names."""
    metrics = "".join(path.read_text() for path in pathlib.Path("src").rglob("*.rs"))
    names = {
        (place, name)
        for place, query in queries
        for name in re.findall(r"telecomx_gateway_(\w+)", query)
    }
    for place, name in sorted(names):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        if not re.search(rf'("|{{PREFIX}}){base}"', metrics):
            problem(place, f"telecomx_gateway_{name} is not a metric of the gateway")
    return len({name for _, name in names})


def alerts():
    rules, runbook = load_rules(), RUNBOOK.read_text()
    count = check_series([(rule["alert"], rule["expr"]) for rule in rules])
    cases = {}
    for test in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    for rule in rules:
        name = rule["alert"]
        if f"\n## {name}\n" not in runbook:
            problem(name, f"has no entry in {RUNBOOK}")
        if rule["annotations"].get("runbook_url") != f"{RUNBOOK_URL}#{name.lower()}":
            problem(name, f"runbook_url is not {RUNBOOK_URL}#{name.lower()}")
        if cases.get(name) != {True, False}:
            problem(
                name,
                f"needs a test in which it fires and one in which it does not, in {RULE_TESTS}",
            )
    unknown = set(re.findall(r"^## (\w+)$", runbook, re.M)) - {rule["alert"] for rule in rules}
    if unknown:
        problem(RUNBOOK, f"entries without an alert: {sorted(unknown)}")
    print(f"{len(rules)} alerts with test and runbook entry; {count} metrics exist")


def panels(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def dashboard():
    document = json.loads(DASHBOARD.read_text())
    queries = [
        (panel["title"], target["expr"])
        for panel in panels(document)
        for target in panel.get("targets", [])
    ]
    count = check_series(queries)
    for title, query in queries:
        selectors = re.findall(r"[a-z_]+\{([^}]*)\}", query)
        bare = re.findall(r"\b(?:telecomx_gateway|process)_\w+\b(?!\{)", query)
        if bare:
            problem(title, f"{bare} select every job and instance")
        for selector in selectors:
            if 'job=~"$job"' not in selector or 'instance=~"$instance"' not in selector:
                problem(title, f"{{{selector}}} does not select by job and instance")
    rows = {panel["title"]: panel for panel in document["panels"] if panel["type"] == "row"}
    if not rows["Fleet"]["collapsed"]:
        problem("Fleet", "the row is not collapsed")
    for panel in panels(document):
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        if panel["type"] == "stat" and not (
            defaults.get("unit", "short") != "short" or defaults.get("mappings")
        ):
            problem(panel["title"], "shows a digit without unit or text")
    for metric in (
        "telecomx_gateway_fast_path_hits_total",
        "telecomx_gateway_tls_certificate_expiry_timestamp_seconds",
        "process_open_fds",
        "process_max_fds",
    ):
        if not any(metric in query for _, query in queries):
            problem(DASHBOARD, f"no panel shows {metric}")
    print(f"{len(queries)} queries by job and instance; {count} metrics exist")


def timeouts():
    """An edge closes an idle connection to the gateway before the gateway does."""
    schema = json.loads(pathlib.Path("config/gateway.schema.json").read_text())
    default = seconds(schema["properties"]["server"]["properties"]["keepalive_timeout"]["default"])
    nginx = (DEPLOY / "edge/nginx.conf").read_text()
    haproxy = (DEPLOY / "edge/haproxy.cfg").read_text()
    envoy = yaml.safe_load((DEPLOY / "edge/envoy.yaml").read_text())
    cluster = envoy["static_resources"]["clusters"][0]
    options = cluster["typed_extension_protocol_options"]
    http = options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"][
        "common_http_protocol_options"
    ]
    found = {
        "nginx": re.search(r"^\s*keepalive_timeout (\w+);", nginx, re.M).group(1),
        "HAProxy": re.search(r"pool-purge-delay (\w+)", haproxy).group(1),
        "Envoy": http["idle_timeout"],
    }
    for name, timeout in found.items():
        if seconds(timeout) >= default:
            problem(
                name,
                f"idle timeout {timeout} is not below server.keepalive_timeout, {default:.0f} s",
            )
    print(f"idle timeouts {found}, below {default:.0f} s")


def image():
    """Every source of the binary is in the build context, and the Dockerfile copies it."""
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    copied = [
        source.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.M)
        for source in line.split()[:-1]
    ]
    ignored = pathlib.Path(".dockerignore").read_text().split()
    context = [line[1:] for line in ignored if line.startswith("!")]
    crates = [pathlib.Path("."), *pathlib.Path("crates").iterdir()]
    sources = [file for crate in crates for file in (crate / "src").rglob("*.rs")]
    needed = {file for crate in crates for file in crate.glob("build.rs")} | set(sources)
    for source in sources:
        for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            included = (source.parent / name).resolve()
            if "/tests/" not in str(source):
                needed.add(included.relative_to(pathlib.Path.cwd()))
    for file in sorted(needed):
        for name, listed in (("Dockerfile", copied), (".dockerignore", context)):
            if not any(file.is_relative_to(path) for path in listed):
                problem(name, f"{file} is missing; the build of the image needs it")
    print(f"the image is built from all {len(needed)} sources")


def unit():
    text = (DEPLOY / "systemd/telecomx-gateway.service").read_text()
    # A line that ends with a backslash continues on the next one.
    text = re.sub(r"\\\n +", "", text)
    for line, reason in (
        ("LogRateLimitIntervalSec=0", "journald would drop access lines"),
        ("Restart=always", "a SIGTERM from outside systemd would end the service"),
        ("RestartPreventExitStatus=78", "a wrong configuration would be tried repeatedly"),
        ("WatchdogSec=", "a process that hangs would not be restarted"),
        (
            f"ExecReload=+/usr/bin/nsenter --target $MAINPID --mount {PROGRAM} check -c ",
            "a reload would succeed with a wrong configuration",
        ),
        ("ExecReload=/bin/kill -HUP $MAINPID", "a reload would have no effect"),
        (
            "Documentation=man:telecomx-gateway(1)",
            "`systemctl status` would not lead to the documents",
        ),
        ("Documentation=file:///usr/share/doc/telecomx-gateway/docs/RUNBOOK.md", "likewise"),
        ("LimitCORE=0", "a core dump would contain secrets"),
    ):
        if not re.search(rf"^{re.escape(line)}", text, re.M):
            problem("systemd unit", f"missing {line}: {reason}")
    print("the unit has the directives that the documents rely on")


if __name__ == "__main__":
    commands = (kubernetes, rejects, same, compose, sbom, alerts, dashboard, timeouts, image, unit)
    {command.__name__: command for command in commands}[sys.argv[1]](*sys.argv[2:])
    for text in problems:
        print(text)
    sys.exit(bool(problems))

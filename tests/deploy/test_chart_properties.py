"""Whatever values the schema lets through, the chart refuses with a sentence or renders something valid."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.deploy.charts import CHART, Helm, HelmError
from tests.deploy.manifests import KUBERNETES, OPERATORS, pods, problems, schema_problems

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

# Strings that YAML and Go templates like to take for something else.
AWKWARD = st.sampled_from(
    ["on", "0", "1e3", "null", "a: b", "- a", "{{ .x }}", "#", "'", '"', "é ü", "~", "%", "a\nb", "@"]
)
WORDS = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
TEXTS = AWKWARD | WORDS
ORIGINS = WORDS.map("https://{}.example:8443".format) | st.just("null")
LABELS = st.dictionaries(WORDS, st.sampled_from(["true", "1", "1e3", "null", "x.y-z", ""]), max_size=2)
NOTES = st.dictionaries(WORDS.map("example.com/{}".format), AWKWARD, max_size=2)
SWITCH = st.booleans()


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A section with any of its fields."""
    return st.fixed_dictionaries({}, optional=fields)


VALUES = some(
    commonLabels=LABELS,
    replicas=st.integers(0, 3),
    image=some(tag=st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True), pullSecrets=st.just(["ours"])),
    config=some(
        namespace=st.sampled_from(["/", "/a: b", "/é"]).filter(lambda text: " " not in text),
        path=st.sampled_from(["/ws", "/a/{b}", "/~", "/on"]),
        allowedOrigins=st.lists(ORIGINS, max_size=2) | st.just(["*"]),
        rate=st.integers(0, 10) | st.floats(0, 999_999, allow_nan=False),
        burst=st.integers(0, 1_000_000),
        maxPayloadSize=st.integers(1, 1 << 30),
        maxNodeBuffer=st.just(0) | st.integers(1 << 20, 1 << 50),
        forwardedAllowIps=TEXTS,
    ),
    drain=some(
        preStopSeconds=st.integers(0, 300), windowSeconds=st.integers(0, 86_399), graceSeconds=st.integers(0, 86_399)
    ),
    auth=some(anonymous=SWITCH)
    | some(
        apiKeys=st.lists(TEXTS.filter(lambda text: "," not in text), max_size=2),
        jwt=st.fixed_dictionaries({"secret": TEXTS}, optional={"audience": TEXTS})
        | st.fixed_dictionaries({"publicKey": TEXTS}),
    ),
    docs=some(token=TEXTS),
    existingSecret=some(name=st.just("ours"), keys=some(jwtSecret=st.just("a"), metricsToken=st.just("b"))),
    redis=some(url=TEXTS.map("redis://{}".format))
    | some(existingSecret=some(name=st.just("ours"), key=st.just("1e3")))
    | st.just({}),
    valkey=some(enabled=st.sampled_from([False, False, False, True])),
    extraEnv=st.lists(
        st.fixed_dictionaries({"name": WORDS, "value": AWKWARD}), max_size=3, unique_by=lambda each: each["name"]
    ),
    podLabels=LABELS,
    podAnnotations=NOTES,
    serviceAccount=some(create=SWITCH, annotations=NOTES),
    rollout=some(
        maxSurge=st.integers(1, 9) | st.sampled_from(["1%", "100%"]),
        minReadySeconds=st.just("") | st.integers(0, 86_400),
    ),
    topologySpread=some(enabled=SWITCH, keys=st.just(["example.com/rack"])),
    podDisruptionBudget=some(enabled=SWITCH, maxUnavailable=st.integers(0, 5) | st.just("50%")),
    service=some(type=st.sampled_from(["ClusterIP", "NodePort"]), port=st.integers(1, 65_535), annotations=NOTES),
    ingress=some(
        enabled=SWITCH,
        flavor=st.sampled_from(["nginx", "traefik", "none"]),
        hosts=st.just(["chat.example"]),
        paths=st.just(["/", "/a b"]),
        annotations=NOTES,
    ),
    route=st.fixed_dictionaries({"enabled": SWITCH, "parentRefs": st.just([{"name": "public"}])}),
    autoscaling=some(
        enabled=SWITCH,
        kind=st.sampled_from(["hpa", "keda"]),
        minReplicas=st.integers(1, 5),
        maxReplicas=st.integers(3, 100),
        cpu=st.integers(0, 100),
        scaleDown=st.just({"periodSeconds": 1800}),
        connections=st.integers(0, 10_000_000),
        keda=some(prometheus=some(serverAddress=st.just("http://prometheus:9090"), query=TEXTS)),
    ),
    networkPolicy=some(
        enabled=SWITCH,
        ingress=some(namespaces=st.lists(WORDS, max_size=2)),
        redis=some(ports=st.lists(st.integers(1, 65_535), min_size=1, max_size=3, unique=True)),
    ),
    metrics=some(
        token=TEXTS,
        podMonitor=some(enabled=SWITCH, labels=LABELS),
        serviceMonitor=some(enabled=SWITCH, labels=LABELS),
        rules=some(enabled=SWITCH),
        dashboard=some(enabled=SWITCH, annotations=NOTES),
    ),
    test=some(enabled=SWITCH, receive=TEXTS),
)


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=VALUES)
def test_values_that_pass_the_schema_render_something_valid_or_are_refused_with_a_sentence(
    helm4: Helm, values: dict[str, Any]
) -> None:
    try:
        documents = helm4.documents(values)
    except HelmError as error:
        if "execution error at (socketspec/templates/deployment.yaml" not in str(error):  # not a sentence of ours
            raise
        return
    assert problems(documents, {"ours"}) == []
    core = [document for document in documents if document["kind"] not in OPERATORS]
    assert [problem for document in core for problem in schema_problems(document, KUBERNETES[-1])] == []
    drain = {"preStopSeconds": 5, "windowSeconds": 10, "graceSeconds": 10, **values.get("drain", {})}
    (grace,) = (
        spec["terminationGracePeriodSeconds"]
        for _, spec, _ in pods(documents)
        if spec["containers"][0]["name"] == "node"
    )
    assert grace == sum(drain.values()) + drain["graceSeconds"] + 10
    (rollout,) = (document["spec"] for document in documents if is_node(document))
    ready = values.get("rollout", {}).get("minReadySeconds", "")
    assert rollout["minReadySeconds"] == (drain["windowSeconds"] if ready == "" else ready)
    assert rollout["progressDeadlineSeconds"] > rollout["minReadySeconds"]
    many = documents and any(document["spec"].get("replicas", 2) > 1 for document in documents if is_node(document))
    assert not many or "SOCKETSPEC_BACKEND" in json.dumps(documents)


def is_node(document: dict[str, Any]) -> bool:
    """Whether it is the Deployment of the nodes."""
    component = document["metadata"]["labels"]["app.kubernetes.io/component"]
    return bool(document["kind"] == "Deployment" and component == "node")

{{/* Names: short enough for what is appended to them, and for the HPA that KEDA makes (keda-hpa-…). */}}
{{- define "socketspec.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end }}

{{- define "socketspec.fullname" -}}
{{- $name := include "socketspec.name" . -}}
{{- $release := .Release.Name | replace "." "-" -}}
{{- $full := .Values.fullnameOverride | default (contains $name $release | ternary $release (printf "%s-%s" $release $name)) -}}
{{- $full = $full | trunc 50 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]" $full) -}}
{{- fail (printf "The release name %q makes the Service name %q, which must begin with a letter: set fullnameOverride." .Release.Name $full) -}}
{{- end -}}
{{- $full -}}
{{- end }}

{{- define "socketspec.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "socketspec.fullname" .) "default") -}}
{{- end }}

{{/* What selects pods: (list $ component). It must never change between versions of the chart. */}}
{{- define "socketspec.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "socketspec.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object: (list $ component extra…). Nobody's extra labels replace those that select. */}}
{{- define "socketspec.labels" -}}
{{- $root := index . 0 -}}
{{- $labels := dict "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63) -}}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- $selector := include "socketspec.selector" (list $root (index . 1)) | fromYaml -}}
{{- merge $selector $labels (include "socketspec.podLabels" . | fromYaml) | toYaml -}}
{{- end }}

{{/* Labels of pods: (list $ component extra…). Without versions: a new chart alone must not start every pod again. */}}
{{- define "socketspec.podLabels" -}}
{{- $root := index . 0 -}}
{{- $labels := include "socketspec.selector" (list $root (index . 1)) | fromYaml -}}
{{- range slice . 2 -}}
{{- $labels = merge $labels . -}}
{{- end -}}
{{- merge $labels $root.Values.commonLabels | toYaml -}}
{{- end }}

{{/*
A value of the user with the templates in its strings rendered, as YAML: (list $ value). Each string by itself, so that
what comes out can neither change the YAML around it nor become a number.
*/}}
{{- define "socketspec.tpl" -}}
{{- (include "socketspec.tpl.json" . | fromJson).it | toYaml -}}
{{- end }}

{{- define "socketspec.tpl.json" -}}
{{- $root := index . 0 -}}
{{- $value := index . 1 -}}
{{- $it := $value -}}
{{- if kindIs "string" $value -}}
{{- $it = tpl $value $root -}}
{{- else if kindIs "slice" $value -}}
{{- $it = list -}}
{{- range $value -}}
{{- $it = append $it (include "socketspec.tpl.json" (list $root .) | fromJson).it -}}
{{- end -}}
{{- else if kindIs "map" $value -}}
{{- $it = dict -}}
{{- range $key, $inner := $value -}}
{{- $_ := set $it $key (include "socketspec.tpl.json" (list $root $inner) | fromJson).it -}}
{{- end -}}
{{- end -}}
{{- dict "it" $it | toJson -}}
{{- end }}

{{- define "socketspec.image" -}}
{{- $repository := .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{/* A Deployment does not count pods that are ending: only this keeps the next batch from draining with the last. */}}
{{- define "socketspec.minReadySeconds" -}}
{{- int64 (eq (toString .Values.rollout.minReadySeconds) "" | ternary .Values.drain.windowSeconds .Values.rollout.minReadySeconds) -}}
{{- end }}

{{/* Beyond minReadySeconds, Kubernetes' default: time for a machine, an image and a start. */}}
{{- define "socketspec.progressDeadlineSeconds" -}}
{{- $derived := include "socketspec.minReadySeconds" . | int64 | add 600 -}}
{{- int64 (eq (toString .Values.rollout.progressDeadlineSeconds) "" | ternary $derived .Values.rollout.progressDeadlineSeconds) -}}
{{- end }}

{{- define "socketspec.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.userId }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "socketspec.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Whether the nodes share a Redis: "true" or nothing. */}}
{{- define "socketspec.hasRedis" -}}
{{- if or .Values.redis.url .Values.redis.existingSecret.name .Values.valkey.enabled }}true{{ end -}}
{{- end }}

{{/* Whether it is said who may connect: "true" or nothing. */}}
{{- define "socketspec.hasAuth" -}}
{{- with .Values.auth }}{{ if or .anonymous .apiKeys .jwt.secret .jwt.publicKey .jwt.jwksUrl }}true{{ end }}{{ end -}}
{{- with .Values.existingSecret.keys }}{{ if or .jwtSecret .apiKeys }}true{{ end }}{{ end -}}
{{- end }}

{{/* Ports of Redis: those named, and those in the URL or its scheme's own. As a JSON list. */}}
{{- define "socketspec.redisPorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.redis.ports -}}
{{- $ports = append $ports (int .) -}}
{{- end -}}
{{- if .Values.redis.url -}}
{{- $own := contains "+sentinel:" .Values.redis.url | ternary 26379 6379 -}}
{{- $hosts := .Values.redis.url | regexFind "://[^/?#]*" | trimPrefix "://" | splitList "@" | last -}}
{{- range splitList "," $hosts -}}
{{- $port := regexFind ":[0-9]+$" . | trimPrefix ":" -}}
{{- $ports = append $ports (empty $port | ternary $own (int $port)) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end }}

{{/* Ports of DNS, of either protocol. */}}
{{- define "socketspec.dnsPorts" -}}
{{- range .Values.networkPolicy.dns.ports }}
- port: {{ int64 . }}
  protocol: UDP
- port: {{ int64 . }}
  protocol: TCP
{{- end -}}
{{- end }}

{{/* A variable from a Secret: (list NAME secret key). */}}
{{- define "socketspec.fromSecret" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 }}
      key: {{ index . 2 | quote }}
{{- end }}

{{/* What the chart's own Secret holds: key to value, as YAML. */}}
{{- define "socketspec.secrets" -}}
{{- $held := dict
  "redis-url" .Values.redis.url
  "jwt-secret" .Values.auth.jwt.secret
  "api-keys" (join "," .Values.auth.apiKeys)
  "docs-token" .Values.docs.token
  "metrics-token" .Values.metrics.token -}}
{{- range $key, $value := $held -}}
{{- if $value }}
{{ $key }}: {{ $value | quote }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* How clients prove who they are: the variables that both the nodes and the test's pod get. */}}
{{- define "socketspec.authEnv" -}}
{{- $full := include "socketspec.fullname" . -}}
{{- $own := include "socketspec.secrets" . | fromYaml -}}
{{- $theirs := .Values.existingSecret.keys -}}
{{- range $env, $keys := dict
  "SOCKETSPEC_JWT_SECRET" (list "jwt-secret" $theirs.jwtSecret)
  "SOCKETSPEC_API_KEYS" (list "api-keys" $theirs.apiKeys) }}
{{- if hasKey $own (first $keys) }}
{{ include "socketspec.fromSecret" (list $env $full (first $keys)) }}
{{- else if last $keys }}
{{ include "socketspec.fromSecret" (list $env $.Values.existingSecret.name (last $keys)) }}
{{- end }}
{{- end }}
{{- with .Values.auth.jwt }}
{{- range $env, $value := dict
  "SOCKETSPEC_JWT_ALGORITHM" .algorithm "SOCKETSPEC_JWT_AUDIENCE" .audience "SOCKETSPEC_JWT_ISSUER" .issuer }}
{{- if $value }}
- name: {{ $env }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Every variable that the chart sets on a node. */}}
{{- define "socketspec.env" -}}
{{- $full := include "socketspec.fullname" . -}}
{{- $own := include "socketspec.secrets" . | fromYaml -}}
{{- $theirs := .Values.existingSecret.keys -}}
{{- $plain := dict
  "SOCKETSPEC_PORT" "8000"
  "SOCKETSPEC_WORKERS" "1"
  "SOCKETSPEC_NAMESPACE" .Values.config.namespace
  "SOCKETSPEC_PATH" .Values.config.path
  "SOCKETSPEC_RATE" (float64 .Values.config.rate | toString)
  "SOCKETSPEC_MAX_PAYLOAD_SIZE" (int64 .Values.config.maxPayloadSize | toString)
  "SOCKETSPEC_DRAIN_WINDOW" (int64 .Values.drain.windowSeconds | toString)
  "SOCKETSPEC_DRAIN_GRACE" (int64 .Values.drain.graceSeconds | toString)
  "SOCKETSPEC_LOG_LEVEL" .Values.config.logLevel
  "SOCKETSPEC_LOG_FORMAT" .Values.config.logFormat
  "SOCKETSPEC_METRICS" (.Values.metrics.enabled | ternary "true" "false")
  "SOCKETSPEC_ANONYMOUS" (.Values.auth.anonymous | ternary "true" "false")
  "SOCKETSPEC_APP" .Values.app
  "SOCKETSPEC_ALLOWED_ORIGINS" (join "," .Values.config.allowedOrigins)
  "SOCKETSPEC_JWT_PUBLIC_KEY" .Values.auth.jwt.publicKey
  "SOCKETSPEC_JWKS_URL" .Values.auth.jwt.jwksUrl
  "SOCKETSPEC_FORWARDED_ALLOW_IPS" .Values.config.forwardedAllowIps -}}
{{- range $env, $number := dict
  "SOCKETSPEC_BURST" .Values.config.burst
  "SOCKETSPEC_MAX_NODE_BUFFER" .Values.config.maxNodeBuffer
  "SOCKETSPEC_MAX_CONNECTIONS" .Values.config.maxConnections
  "SOCKETSPEC_MAX_CONNECTIONS_PER_ADDRESS" .Values.config.maxConnectionsPerAddress
  "SOCKETSPEC_ACCEPTS_PER_SECOND" .Values.config.acceptsPerSecond
  "SOCKETSPEC_MAX_CONNECTIONS_PER_USER" .Values.config.maxConnectionsPerUser }}
{{- $_ := set $plain $env (eq (int64 $number) 0 | ternary "" (int64 $number | toString)) }}
{{- end }}
{{- range $env, $value := $plain }}
{{- if $value }}
- name: {{ $env }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- if .Values.valkey.enabled }}
- name: SOCKETSPEC_BACKEND
  value: redis://{{ $full }}-valkey:6379/0
{{- else if .Values.redis.existingSecret.name }}
{{ include "socketspec.fromSecret" (list "SOCKETSPEC_BACKEND" .Values.redis.existingSecret.name .Values.redis.existingSecret.key) }}
{{- else if .Values.redis.url }}
{{ include "socketspec.fromSecret" (list "SOCKETSPEC_BACKEND" $full "redis-url") }}
{{- end }}
{{- include "socketspec.authEnv" . }}
{{- range $env, $keys := dict
  "SOCKETSPEC_DOCS_TOKEN" (list "docs-token" $theirs.docsToken)
  "SOCKETSPEC_METRICS_TOKEN" (list "metrics-token" $theirs.metricsToken) }}
{{- if hasKey $own (first $keys) }}
{{ include "socketspec.fromSecret" (list $env $full (first $keys)) }}
{{- else if last $keys }}
{{ include "socketspec.fromSecret" (list $env $.Values.existingSecret.name (last $keys)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Prefixes of an Ingress or a route: (list $ paths). */}}
{{- define "socketspec.paths" -}}
{{- index . 1 | default (list (index . 0).Values.config.path) | toJson -}}
{{- end }}

{{/* Through what /metrics can be read from outside and without a token; nothing where it cannot. */}}
{{- define "socketspec.publicMetrics" -}}
{{- $ways := list -}}
{{- if and .Values.metrics.enabled (not (or .Values.metrics.token .Values.existingSecret.keys.metricsToken)) -}}
{{- if ne .Values.service.type "ClusterIP" -}}
{{- $ways = append $ways (printf "the %s" .Values.service.type) -}}
{{- end -}}
{{- range $kind, $section := dict "Ingress" .Values.ingress "HTTPRoute" .Values.route -}}
{{- if $section.enabled -}}
{{- range include "socketspec.paths" (list $ $section.paths) | fromJsonArray -}}
{{- if has (trimSuffix "/" .) (list "" "/metrics") -}}
{{- $ways = append $ways (printf "the %s" $kind) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- join " and " (uniq $ways) -}}
{{- end }}

{{/* What a monitor of the Prometheus Operator sends to be let in. */}}
{{- define "socketspec.metricsAuthorization" -}}
{{- if or .Values.metrics.token .Values.existingSecret.keys.metricsToken -}}
authorization:
  type: Bearer
  credentials:
    {{- if .Values.metrics.token }}
    name: {{ include "socketspec.fullname" . }}
    key: metrics-token
    {{- else }}
    name: {{ .Values.existingSecret.name }}
    key: {{ .Values.existingSecret.keys.metricsToken | quote }}
    {{- end }}
{{- end -}}
{{- end }}

{{/* Whether the pod of `helm test` has something that lets it in: "true" or nothing. */}}
{{- define "socketspec.testIsLetIn" -}}
{{- $keys := .Values.existingSecret.keys -}}
{{- with .Values.auth -}}
{{- if or .anonymous .apiKeys $keys.apiKeys .jwt.secret $keys.jwtSecret $.Values.test.tokenSecret.name }}true{{ end -}}
{{- end -}}
{{- end }}

{{/* Leave slowly: every pod that goes sends its clients elsewhere. */}}
{{- define "socketspec.scalingBehavior" -}}
{{- with .Values.autoscaling.scaleDown -}}
scaleDown:
  stabilizationWindowSeconds: {{ int64 .stabilizationSeconds }}
  selectPolicy: Min
  policies:
    - type: Pods
      value: {{ int64 .pods }}
      periodSeconds: {{ int64 .periodSeconds }}
{{- end }}
{{- end }}

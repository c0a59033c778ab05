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
{{- $labels := include "socketspec.selector" (list $root (index . 1)) | fromYaml -}}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63) -}}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- range slice . 2 -}}
{{- $labels = merge $labels . -}}
{{- end -}}
{{- merge $labels $root.Values.commonLabels | toYaml -}}
{{- end }}

{{- define "socketspec.image" -}}
{{- $repository := .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
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
